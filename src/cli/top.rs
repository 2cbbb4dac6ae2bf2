//! `broker top`: how busy each machine is.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use super::builders::Listing;
use super::client::{Client, ClientError};
use super::output::{Document, Json, Screen};
use super::report::Complaint;
use super::text::{count, size, size_rate};
use super::{Context, picture};
use crate::ipc::view::{BuilderView, LoadView, StatusView};

/// How long one picture waits for machines that nobody has asked for a while; their answers take a second or two.
const PATIENCE: Duration = Duration::from_secs(4);

/// Show how busy each machine is: builds, processors, memory, disk, network
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker top                  Kept up to date on a terminal, until interrupted
  broker top | cat            Once
  broker top --json | jq '.builders[] | {id, cpu: .load.cpu}'

CPU is the share of all processors that is in use; LOAD the processes that want to run, beside the processors there are;
PRESSURE the share of the last ten seconds in which something had to wait for memory. A machine says these every ten
seconds while it has builds or somebody looks; `-` is what it does not say.")]
pub(super) struct Args {
    /// Print a JSON document, once
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, context: &Context) -> Result<ExitCode, Complaint> {
    let mut client = context.connect()?;
    let mut screen = Screen::stdout();
    if screen.is_terminal() && !args.json {
        client.watch::<Complaint>(|view| Ok(screen.redraw(&document(&view))?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let view = settled(&mut client)?;
    if args.json {
        screen.json(&Listing::of(&view), Json::Pretty)?;
    } else {
        screen.print(&document(&view))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Why no further picture is wanted.
enum End {
    Settled(Box<StatusView>),
    Failed(ClientError),
}

impl From<ClientError> for End {
    fn from(error: ClientError) -> Self {
        Self::Failed(error)
    }
}

/// The first picture in which every ready machine has said how busy it is, or the last one that is worth waiting for.
fn settled(client: &mut Client) -> Result<StatusView, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    let has_said = |builder: &BuilderView| {
        builder.state != "ready" || builder.load.as_ref().is_some_and(|load| load.cpu.is_some())
    };
    let mut last = None;
    let end = client.watch(|view| {
        if view.builders.iter().all(has_said) || Instant::now() >= deadline {
            return Err(End::Settled(Box::new(view)));
        }
        last = Some(view);
        Ok(())
    });
    match (end, last) {
        (Err(End::Settled(view)), _) => Ok(*view),
        // A broker that ends has said what it could.
        (Err(End::Failed(_)) | Ok(()), Some(view)) => Ok(view),
        (Err(End::Failed(error)), None) => Err(error),
        (Ok(()), None) => Err(ClientError::Closed),
    }
}

fn document(view: &StatusView) -> Document {
    let mut document = Document::default();
    let slots = |of: fn(&BuilderView) -> u32| view.builders.iter().map(of).map(u64::from).sum::<u64>();
    let queued = view.builds.iter().filter(|build| build.phase == "queued").count();
    document.line(format!(
        "{}, {}/{} slots in use, {} queued",
        count(view.builders.len() as u64, "builder"),
        slots(|builder| builder.slots_used),
        slots(|builder| builder.slots),
        count(queued as u64, "build"),
    ));
    if !view.builders.is_empty() {
        let header = [
            "BUILDER",
            "POOL",
            "STATE",
            "SLOTS",
            "CPU",
            "LOAD",
            "MEMORY",
            "PRESSURE",
            "DISK FREE",
            "IN",
            "OUT",
        ];
        document.blank().table(&header, view.builders.iter().map(row).collect());
    }
    document
}

fn row(builder: &BuilderView) -> Vec<String> {
    let nothing = LoadView::default();
    let load = builder.load.as_ref().unwrap_or(&nothing);
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let average = load.average.map(|average| match load.processors {
        Some(processors) => format!("{average:.2}/{processors}"),
        None => format!("{average:.2}"),
    });
    let memory = load.memory_total.zip(load.memory_available);
    let memory = memory.map(|(total, free)| format!("{}/{}", size(total.saturating_sub(free)), size(total)));
    let disk = load.disk_free.zip(load.disk_total);
    let disk = disk.map(|(free, total)| format!("{} ({})", size(free), picture::share(free, total)));
    vec![
        builder.id.clone(),
        builder.pool.clone(),
        picture::state_of(builder),
        format!("{}/{}", builder.slots_used, builder.slots),
        or_dash(load.cpu.map(|percent| format!("{percent:.0}%"))),
        or_dash(average),
        or_dash(memory),
        or_dash(load.memory_pressure.map(|percent| format!("{percent:.1}%"))),
        or_dash(disk),
        or_dash(load.received.map(size_rate)),
        or_dash(load.sent.map(size_rate)),
    ]
}
