//! One client of the store endpoint: the importer of a finished build, a stock Nix that uses the broker as a machine, or
//! one that uses a pool as a store.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::UnixStream;

use super::build::{Build, End, Listener, Source};
use super::driver::{DriverHandle, Message};
use super::hook_client::ended;
use super::lineage::Patience;
use super::remote::Remote;
use super::{Shared, chain};
use crate::endpoint::{Archive, Building, Imported, Progress, Store, serve};
use crate::ipc::{Frame, Reply};
use crate::model::{
    BuildInputs, BuildRequest, BuildSettings, BuilderId, BuilderState, ClientId, DrvPath, Failure,
    FailureKind, Feature, Requirement, StorePath, System,
};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::worker::{
    BuildResult, ClientOptions, PathInfo, RemoteError, ResultStatus, Server, ServerHello, Trust,
};
use crate::scheduler::{Answer, Event};
use crate::transfer::nar_source::NarSource;
use crate::transfer::{LocalStoreError, Output, Products};

/// How long a client that wants a pool as its store waits for a builder of it.
const RELAY_DEADLINE: Duration = Duration::from_secs(600);
/// Between two looks for that builder.
const RELAY_POLL: Duration = Duration::from_millis(200);

fn hello() -> ServerHello {
    ServerHello { daemon_version: format!("nix-broker {}", env!("CARGO_PKG_VERSION")), trust: Trust::Trusted }
}

/// Hands out the outputs of a finished build.
pub(super) async fn import(mut stream: UnixStream, products: &Arc<Products>) -> anyhow::Result<()> {
    Frame::message(&Reply::Go)?.send(&mut stream).await?;
    let (reader, writer) = stream.into_split();
    let server = Server::accept(reader, writer, hello()).await?;
    Ok(serve(server, Imported(Arc::clone(products))).await?)
}

/// Builds what a stock Nix sends, wherever the scheduler places it.
pub(super) async fn store(
    mut stream: UnixStream,
    shared: &Arc<Shared>,
    driver: &DriverHandle,
) -> anyhow::Result<()> {
    Frame::message(&Reply::Go)?.send(&mut stream).await?;
    let (reader, writer) = stream.into_split();
    let server = Server::accept(reader, writer, hello()).await?;
    let store = Machine {
        shared: Arc::clone(shared),
        driver: driver.clone(),
        client: shared.next_endpoint_client(),
        outputs: BTreeMap::new(),
    };
    // Not counted among the clients that the shutdown waits for: one that is idle may stay for ever.
    Ok(serve(server, store).await?)
}

/// Connects a client with a daemon on one of the pool's builders, byte for byte.
pub(super) async fn relay(
    mut stream: UnixStream,
    pool: &str,
    shared: &Arc<Shared>,
    driver: &DriverHandle,
) -> anyhow::Result<()> {
    let Some(spec) = shared.pool(pool) else {
        let why = format!("there is no pool `{pool}`");
        return Ok(Frame::message(&Reply::Refused { why })?.send(&mut stream).await?);
    };
    let remote = match tokio::time::timeout(RELAY_DEADLINE, ready_builder(spec, driver)).await {
        Ok(remote) => remote?,
        Err(_) => {
            let why = format!("no builder of pool `{pool}` was ready within {RELAY_DEADLINE:?}");
            return Ok(Frame::message(&Reply::Refused { why })?.send(&mut stream).await?);
        }
    };
    let channel = remote.channel().await?;
    Frame::message(&Reply::Go)?.send(&mut stream).await?;
    let mut daemon = tokio::io::join(channel.stdout, channel.stdin);
    tokio::io::copy_bidirectional(&mut stream, &mut daemon).await.context("relay to a builder")?;
    Ok(())
}

/// A builder of this pool, started if there is none.
async fn ready_builder(spec: &crate::model::PoolSpec, driver: &DriverHandle) -> anyhow::Result<Arc<Remote>> {
    let mut started = false;
    loop {
        let status = driver.status().await.context("the broker is ending")?;
        let of_pool: Vec<_> = status.builders.iter().filter(|builder| builder.pool == spec.name).collect();
        if of_pool.is_empty() && !started {
            driver.event(Event::StartRequested(spec.name.clone()));
            started = true;
        }
        let ready: Vec<BuilderId> = of_pool
            .into_iter()
            .filter(|builder| builder.state == BuilderState::Ready)
            .map(|builder| builder.id)
            .collect();
        for builder in ready {
            if let Some(remote) = driver.remote(builder).await {
                return Ok(remote);
            }
        }
        tokio::time::sleep(RELAY_POLL).await;
    }
}

/// The broker as one large machine.
struct Machine {
    shared: Arc<Shared>,
    driver: DriverHandle,
    client: ClientId,
    /// Of the builds of this connection.
    outputs: BTreeMap<StorePath, Output>,
}

impl Store for Machine {
    type Build = Submitted;

    /// The client is on this machine: what is valid in its store need not be sent, for we read it from there.
    async fn valid_paths(&mut self, paths: BTreeSet<StorePath>) -> Result<BTreeSet<StorePath>, RemoteError> {
        self.shared.local_store.valid_paths(&paths).await.map_err(remote_error)
    }

    async fn path_info(&mut self, path: &StorePath) -> Result<Option<PathInfo>, RemoteError> {
        if let Some(output) = self.outputs.get(path) {
            return Ok(Some(output.info.clone()));
        }
        match self.shared.local_store.path_infos(&[path.clone()].into()).await {
            Ok(infos) => Ok(infos.into_iter().next()),
            Err(LocalStoreError::NotValid(_)) => Ok(None),
            Err(error) => Err(remote_error(error)),
        }
    }

    async fn archive(&mut self, path: &StorePath) -> Result<Option<Archive>, RemoteError> {
        if let Some(output) = self.outputs.get(path) {
            return Ok(Some(Archive::Spool(output.nar.clone())));
        }
        let valid = self.valid_paths([path.clone()].into()).await?;
        Ok(valid.contains(path).then(|| Archive::Local(NarSource::open(path.to_path_buf()))))
    }

    async fn build(
        &mut self,
        drv: DrvPath,
        derivation: BasicDerivation,
        options: &ClientOptions,
    ) -> Result<Submitted, RemoteError> {
        let features = derivation.required_system_features().into_iter().map(Feature::new).collect();
        let requirement = Requirement::new(System::new(derivation.system.as_str()), features);
        let mut request = BuildRequest {
            client: self.client,
            settings: BuildSettings {
                only_remote: true,
                can_locally: false,
                timeout: options.timeout,
                max_silent_time: options.max_silent_time,
                cores: options.cores,
                keep_failed: options.keep_failed,
                use_substitutes: options.use_substitutes,
                max_log_size: options.max_log_size,
            },
            ..BuildRequest::new(drv, requirement)
        };
        // What the client sent names paths only. It is a Nix on this machine, whose store has the derivation as well.
        let completed = self.shared.lineages.complete(&mut request, None, Patience::UntilKnown).await;
        completed.map_err(|error| RemoteError::new(format!("nix-broker: '{}': {error}", request.drv)))?;
        request.prediction = self.shared.foresight().predict(&request.drv, &request.requirement);
        match self.driver.offers().answer(&request) {
            Answer::Accept { .. } => {
                let inputs =
                    BuildInputs { paths: derivation.input_srcs.clone(), wanted_outputs: BTreeSet::new() };
                let source = Source::Given(Box::new(derivation));
                let id = self.shared.next_build_id();
                let (build, listener) = Build::new(id, request, source, &self.shared.spool_dir);
                self.shared.logs.keep(&build, None);
                let made_on = self.shared.origins.of(&inputs.paths);
                build.set_inputs(inputs);
                self.driver.send(Message::NewBuild(Arc::clone(&build)));
                self.driver.inputs_made_on(build.id, made_on);
                self.driver.event(Event::InputsKnown(build.id));
                Ok(Submitted::new(build, listener, self.driver.clone()))
            }
            Answer::Decline { why } | Answer::Postpone { why } => {
                Err(RemoteError::new(format!("nix-broker cannot build '{}': {why}", request.drv)))
            }
        }
    }

    fn built(&mut self, mut build: Submitted) {
        if let Some(products) = build.products.take() {
            self.outputs.extend(products.outputs.iter().map(|(path, output)| (path.clone(), output.clone())));
        }
    }
}

/// A build of a client of the endpoint. Dropped, the client is gone.
struct Submitted {
    build: Arc<Build>,
    listener: Listener,
    driver: DriverHandle,
    position: u64,
    /// Of the log: the line that has not ended, then whole lines that wait.
    partial: Vec<u8>,
    lines: VecDeque<Vec<u8>>,
    products: Option<Arc<Products>>,
}

impl Submitted {
    fn new(build: Arc<Build>, listener: Listener, driver: DriverHandle) -> Self {
        Self {
            build,
            listener,
            driver,
            position: 0,
            partial: Vec::new(),
            lines: VecDeque::new(),
            products: None,
        }
    }

    fn read_log(&mut self) {
        // A log that cannot be read back is reported by the attempt, which could not write it.
        let chunk = self.build.log.read_from(self.position).unwrap_or_default();
        self.position += chunk.len() as u64;
        for byte in chunk {
            if byte == b'\n' {
                let line = std::mem::take(&mut self.partial);
                if !line.starts_with(b"@nix ") {
                    self.lines.push_back(line);
                }
            } else {
                self.partial.push(byte);
            }
        }
    }

    fn result(&mut self, end: End) -> BuildResult {
        match end {
            End::Succeeded(products) => {
                let result = products.result.clone();
                self.products = Some(products);
                result
            }
            End::Failed(failure) => BuildResult::new(status(&failure), failure.reason),
            End::Cancelled => BuildResult::new(ResultStatus::MiscFailure, "the build was cancelled"),
        }
    }
}

impl Building for Submitted {
    async fn next(&mut self) -> Progress {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Progress::Line(line);
            }
            let end = tokio::select! {
                () = self.build.log.grown_past(self.position) => None,
                end = ended(&mut self.listener.end) => Some(end),
            };
            match end {
                Some(end) if self.build.log.len() <= self.position => {
                    return Progress::Ended(Box::new(self.result(end)));
                }
                Some(_) | None => self.read_log(),
            }
        }
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        self.driver.event(Event::ClientGone(self.build.id));
    }
}

fn status(failure: &Failure) -> ResultStatus {
    match failure.kind {
        FailureKind::Derivation => ResultStatus::PermanentFailure,
        FailureKind::TimedOut => ResultStatus::TimedOut,
        FailureKind::LogLimitExceeded => ResultStatus::LogLimitExceeded,
        FailureKind::Request => ResultStatus::InputRejected,
        FailureKind::Transient | FailureKind::NoSpace | FailureKind::BuilderLost | FailureKind::Transfer => {
            ResultStatus::TransientFailure
        }
        FailureKind::Provider | FailureKind::Broker => ResultStatus::MiscFailure,
    }
}

fn remote_error(error: LocalStoreError) -> RemoteError {
    RemoteError::new(format!("nix-broker: {}", chain(&anyhow::Error::new(error))))
}
