//! `broker image upload`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::ValueEnum;
use tokio::signal::unix::{SignalKind, signal};

use super::SiteArgs;
use crate::cli::aws;
use crate::cli::output::{Document, Mark, Screen};
use crate::cli::report::{self, Complaint};
use crate::provider::ec2::api::{Api, BootMode};
use crate::provider::ec2::image::{self, BlockPlan, DiskFile, ImageFile, Progress, UploadOrder};

/// Upload a disk image, and make an AMI of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  broker image upload ./result                     What `nix build .#builder-image` made
  broker image upload disk.img --arch aarch64
  broker image upload ./result --dry-run           What would be uploaded, as what, and what it would cost

FILE is a raw disk image, a VHD of fixed size, or the directory that Nix made of one. Its blocks are written straight into
a snapshot with the EBS direct APIs, so that neither an S3 bucket nor the role `vmimport` is needed; blocks of zeros are
left out. How the disk is started is read from its partitions. An upload that fails or is interrupted deletes its
snapshot. The same disk is not uploaded twice.")]
pub(super) struct Args {
    /// The disk image
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The processors it is for [default: what is said beside it or in its name]
    #[arg(long, value_enum)]
    arch: Option<Arch>,
    /// The image's name [default: nix-broker/LABEL-SYSTEM-DIGITS]
    #[arg(long, value_name = "NAME", value_parser = parse_name)]
    name: Option<String>,
    #[command(flatten)]
    site: SiteArgs,
    /// Show what would be uploaded, and make nothing
    #[arg(long)]
    dry_run: bool,
}

/// A kind of processor, as Nix calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Arch {
    /// Intel and AMD
    #[value(name = "x86_64")]
    X86_64,
    /// Graviton
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Arch {
    fn system(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-linux",
            Self::Aarch64 => "aarch64-linux",
        }
    }

    /// EC2's word.
    fn ec2(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "arm64",
        }
    }

    /// What a system or the name of a file is about.
    fn in_text(text: &str) -> Option<Self> {
        let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
        match (has(&["x86_64", "amd64"]), has(&["aarch64", "arm64"])) {
            (true, false) => Some(Self::X86_64),
            (false, true) => Some(Self::Aarch64),
            (true, true) | (false, false) => None,
        }
    }
}

fn parse_name(text: &str) -> Result<String, String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "()[] ./-'@_".contains(c);
    if (3..=128).contains(&text.len()) && text.chars().all(is_allowed) {
        return Ok(text.to_owned());
    }
    Err("a name has 3 to 128 letters, digits and ( ) [ ] . / - ' @ _".to_owned())
}

pub(super) fn run(args: &Args) -> Result<ExitCode, Complaint> {
    let found = ImageFile::find(&args.file)?;
    let file = Arc::new(DiskFile::open(&found.path)?);
    let arch = arch(args, &found)?;
    let boot_mode = boot_mode(arch, file.disk().boot_mode, &found.path)?;
    aws::block_on(go(args, &found, &file, arch, boot_mode))
}

fn arch(args: &Args, found: &ImageFile) -> Result<Arch, Complaint> {
    let said = found.system.as_deref().and_then(Arch::in_text);
    match (args.arch, said) {
        (Some(wanted), Some(said)) if wanted != said => {
            let message = format!(
                "`{}` says that it is for {}, not for {}",
                found.path.display(),
                said.system(),
                wanted.system()
            );
            Err(Complaint::new(message, Some("leave out `--arch`, or build the other image".to_owned())))
        }
        (Some(arch), _) | (None, Some(arch)) => Ok(arch),
        (None, None) => {
            let name = found.path.file_name().unwrap_or_default().to_string_lossy();
            Arch::in_text(&name).ok_or_else(|| {
                let message = format!("nothing says which processors `{}` is for", found.path.display());
                Complaint::new(message, Some("say it: `--arch x86_64` or `--arch aarch64`".to_owned()))
            })
        }
    }
}

/// Instances with Graviton know nothing but UEFI.
fn boot_mode(arch: Arch, shown: Option<BootMode>, path: &Path) -> Result<BootMode, Complaint> {
    match (arch, shown) {
        (Arch::X86_64, shown) => Ok(shown.unwrap_or(BootMode::LegacyBios)),
        (Arch::Aarch64, Some(BootMode::Uefi | BootMode::UefiPreferred)) => Ok(BootMode::Uefi),
        (Arch::Aarch64, Some(BootMode::LegacyBios) | None) => {
            let message =
                format!("`{}` has no EFI system partition, and aarch64 instances need one", path.display());
            let hint = "is it an image for x86_64? NixOS makes one for aarch64 with `ec2.efi = true`";
            Err(Complaint::new(message, Some(hint.to_owned())))
        }
    }
}

async fn go(
    args: &Args,
    found: &ImageFile,
    file: &Arc<DiskFile>,
    arch: Arch,
    boot_mode: BootMode,
) -> Result<ExitCode, Complaint> {
    let api = args.site.connect().await?;
    let mut screen = Screen::stdout();
    let plan = plan(file).await?;
    let stem = file.path().file_stem().unwrap_or_default().to_string_lossy();
    let label = found.label.clone().unwrap_or_else(|| stem.into_owned());
    let order = UploadOrder {
        name: args.name.clone().unwrap_or_else(|| image::name_of(&label, arch.system(), &plan)),
        arch: arch.ec2().to_owned(),
        boot_mode,
        label: Some(label),
    };
    screen.print(&summary(&api, file, &plan, &order))?;
    if args.dry_run {
        let mut document = Document::default();
        match image::preflight(&api, &plan, &order).await? {
            Some(there) => {
                document.line(format!("`{}` has the same disk: nothing would be uploaded.", there.id))
            }
            None => document.line("Nothing was made."),
        };
        screen.print(&document)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut told = 0;
    let mut tell = |progress: Progress| {
        if let Some(text) = words(&progress, &mut told) {
            let mut document = Document::default();
            document.marked(Mark::Ok, &text, None);
            // What is made is made, and reported at the end, whether or not anybody reads on.
            drop(screen.print(&document));
        }
    };
    let uploaded = image::upload(&api, file, &plan, &order, interrupted(), &mut tell).await?;
    let mut document = Document::default();
    let text = match uploaded.is_old {
        true => format!("`{}` ({}) has the same disk: nothing was uploaded", uploaded.id, uploaded.name),
        false => format!("`{}` in {} can be launched: `image = \"own\"` takes it", uploaded.id, api.region()),
    };
    document.marked(Mark::Ok, &text, None);
    screen.print(&document)?;
    Ok(ExitCode::SUCCESS)
}

async fn plan(file: &Arc<DiskFile>) -> Result<BlockPlan, Complaint> {
    let from = Arc::clone(file);
    let read = tokio::task::spawn_blocking(move || from.plan());
    match read.await {
        Ok(plan) => Ok(plan?),
        Err(_) => Err(Complaint::internal()),
    }
}

fn summary(api: &Api, file: &DiskFile, plan: &BlockPlan, order: &UploadOrder) -> Document {
    let mut document = Document::default();
    let cost = image::cost_of(plan.bytes());
    for (name, value) in [
        ("file", file.path().display().to_string()),
        ("name", order.name.clone()),
        ("region", api.region().to_owned()),
        ("for", format!("{}, starts by {}", order.arch, order.boot_mode.name())),
        ("disk", format!("{} GiB, of which {} are written", plan.gib(), gib(plan.bytes()))),
        ("cost", format!("about {} a month", cost)),
    ] {
        document.line(format!("{name:<8}{value}"));
    }
    document
}

/// A line for every tenth of the blocks, and for every step.
fn words(progress: &Progress, told: &mut usize) -> Option<String> {
    match progress {
        Progress::Started { snapshot } => Some(format!("`{snapshot}` is begun")),
        Progress::Written { done, of } => {
            let tenth = done * 10 / (*of).max(1);
            let is_news = tenth > *told;
            *told = tenth.max(*told);
            is_news.then(|| format!("{done} of {of} blocks are written"))
        }
        Progress::Sealed => Some("all is written; EBS makes a snapshot of it".to_owned()),
        Progress::Registered { image } => Some(format!("`{image}` is registered")),
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// Until somebody wants it to end.
async fn interrupted() {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        report::warn("signals cannot be caught: an interrupted upload leaves its snapshot for a while");
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    report::warn("interrupted: the snapshot is being deleted");
}
