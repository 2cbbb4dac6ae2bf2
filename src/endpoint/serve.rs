//! One client's conversation: request by request, each answered from the [`Store`].

use tokio::io::BufReader;

use super::{Archive, Building, Progress, Store};
use crate::model::{DrvPath, StorePath};
use crate::protocol::derivation::BasicDerivation;
use crate::protocol::worker::log::Field;
use crate::protocol::worker::{
    BuildMode, ClientOptions, LogEvent, Missing, ProtocolError, RemoteError, Request, Server,
};

/// The one activity a client is told of: its build.
const BUILD_ACTIVITY: u64 = 1;
/// Nix's number for an activity that is a build.
const KIND_BUILD: u64 = 105;
/// Bytes of an archive read at once.
const READ_BUFFER: usize = 128 << 10;
/// "Information": shown by default.
const LEVEL_INFO: u64 = 3;

/// Serves a client that has been greeted until it leaves.
pub async fn serve(mut server: Server, mut store: impl Store) -> Result<(), ProtocolError> {
    let mut options = ClientOptions::default();
    while let Some(request) = server.next_request().await? {
        match request {
            Request::SetOptions(set) => {
                options = *set;
                server.reply_done().await?;
            }
            Request::BuildDerivation { drv, derivation, mode } => {
                match build(&mut server, &mut store, drv, *derivation, mode, &options).await? {
                    Flow::Continue => {}
                    Flow::ClientLeft => return Ok(()),
                }
            }
            Request::AddMultipleToStore { .. } => match server.entries().await?.left() {
                0 => server.reply_done().await?,
                _ => server.reply_error(&takes_no_paths()).await?,
            },
            Request::AddToStoreNar { .. } => server.reply_error(&takes_no_paths()).await?,
            Request::QueryValidPaths { paths, .. } => match store.valid_paths(paths).await {
                Ok(valid) => server.reply_valid_paths(&valid).await?,
                Err(error) => server.reply_error(&error).await?,
            },
            Request::IsValidPath(path) => match store.path_info(&path).await {
                Ok(info) => server.reply_bool(info.is_some()).await?,
                Err(error) => server.reply_error(&error).await?,
            },
            Request::QueryPathInfo(path) => match store.path_info(&path).await {
                Ok(info) => server.reply_path_info(info.as_ref()).await?,
                Err(error) => server.reply_error(&error).await?,
            },
            Request::EnsurePath(path) => match store.path_info(&path).await {
                Ok(Some(_)) => server.reply_one().await?,
                Ok(None) => server.reply_error(&not_valid(&path)).await?,
                Err(error) => server.reply_error(&error).await?,
            },
            Request::NarFromPath(path) => send_archive(&mut server, &mut store, &path).await?,
            // What is valid here is held by this machine's Nix, or by the broker for as long as the client is connected.
            Request::AddTempRoot(_) | Request::AddBuildLog(_) => server.reply_one().await?,
            Request::QueryMissing(_) => server.reply_missing(&Missing::default()).await?,
            Request::QueryRealisation(_) => server.reply_realisation(None).await?,
            Request::BuildPaths { .. }
            | Request::BuildPathsWithResults { .. }
            | Request::QueryDerivationOutputMap(_) => server.reply_error(&is_no_store()).await?,
            Request::Unsupported(op) => {
                let error = RemoteError::new(format!("operation {op} is not supported by nix-broker"));
                server.reply_error(&error).await?;
            }
        }
    }
    Ok(())
}

enum Flow {
    Continue,
    ClientLeft,
}

async fn send_archive(
    server: &mut Server,
    store: &mut impl Store,
    path: &StorePath,
) -> Result<(), ProtocolError> {
    match store.archive(path).await {
        Ok(Some(Archive::Spool(spool))) => {
            server.reply_nar(&mut BufReader::with_capacity(READ_BUFFER, spool.reader())).await?;
        }
        Ok(Some(Archive::Local(source))) => {
            server.reply_nar(&mut BufReader::with_capacity(READ_BUFFER, source)).await?;
        }
        Ok(None) => server.reply_error(&not_valid(path)).await?,
        Err(error) => server.reply_error(&error).await?,
    }
    Ok(())
}

async fn build<S: Store>(
    server: &mut Server,
    store: &mut S,
    drv: DrvPath,
    derivation: BasicDerivation,
    mode: BuildMode,
    options: &ClientOptions,
) -> Result<Flow, ProtocolError> {
    if mode != BuildMode::Normal {
        let error = RemoteError::new("nix-broker builds; it does not check or repair");
        return server.reply_error(&error).await.map(|()| Flow::Continue);
    }
    let text = format!("building '{drv}'").into_bytes();
    let start = LogEvent::Start {
        id: BUILD_ACTIVITY,
        level: LEVEL_INFO,
        kind: KIND_BUILD,
        text,
        fields: vec![
            Field::String(drv.to_string().into_bytes()),
            Field::String(Vec::new()),
            Field::Int(1),
            Field::Int(1),
        ],
        parent: 0,
    };
    let mut building = match store.build(drv, derivation, options).await {
        Ok(building) => building,
        Err(error) => return server.reply_error(&error).await.map(|()| Flow::Continue),
    };
    let mut announced = false;
    let result = loop {
        let progress = tokio::select! {
            progress = building.next() => progress,
            () = server.client_closed() => return Ok(Flow::ClientLeft),
        };
        match progress {
            Progress::Line(text) => {
                if !announced {
                    server.send_log(&start).await?;
                    announced = true;
                }
                server.send_log(&LogEvent::Line { activity: BUILD_ACTIVITY, text }).await?;
            }
            Progress::Ended(result) => break result,
        }
    };
    if announced {
        server.send_log(&LogEvent::Stop { id: BUILD_ACTIVITY }).await?;
    }
    if result.status.is_success() {
        store.built(building);
    }
    server.reply_build_result(&result).await?;
    Ok(Flow::Continue)
}

fn not_valid(path: &StorePath) -> RemoteError {
    RemoteError::new(format!("path '{path}' is not valid"))
}

fn is_no_store() -> RemoteError {
    RemoteError::new(
        "this endpoint builds what Nix asks of a machine; to use a pool as a store, name it: \
         ssh-ng://localhost?remote-program=<broker-hook>&remote-store=<pool>",
    )
}

fn takes_no_paths() -> RemoteError {
    RemoteError::new(
        "this endpoint takes no paths, because this machine's store is where it looks; to copy to a builder, name its \
         pool: ssh-ng://localhost?remote-program=<broker-hook>&remote-store=<pool>",
    )
}
