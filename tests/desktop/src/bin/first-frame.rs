//! The viewer for `tegata-agent --viewer exec:`: keeps the first picture of the desktop and ends.
//!
//! The connected socket's number comes in `TEGATA_FD`, the pin in `TEGATA_CERT_SHA256`, the user in
//! `TEGATA_USER`, the number of a pipe with the secret in `TEGATA_SECRET_FD` (the last two may be
//! absent). Exit numbers: 0 painted, 1 not painted, 133 no TLS, 143 another certificate or no
//! security, as the usual viewer has them; 2 wrong arguments.

use std::env;
use std::fs::{self, File};
use std::io::BufWriter;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use clap::Parser;
use command_fds::inherited::{init_inherited_fds, take_fd_ownership};
use tegata_desktop::fingerprint::Fingerprint;
use tegata_desktop::timeline::Painted;
use tegata_desktop::viewer::{FirstFrame, Picture, Visit, VisitError, first_frame};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite};
use tokio::net::{TcpStream, UnixStream, unix::pipe};
use tokio::time::timeout;

/// The longest secret that is read, in bytes.
const MAX_SECRET: u64 = 4096;

/// Keeps the first picture of an RDP desktop and ends.
#[derive(Parser)]
struct Arguments {
    /// Where to write the picture (PNG).
    #[arg(long)]
    out: PathBuf,
    /// Where to write when it was painted (JSON); without it, to the standard output.
    #[arg(long)]
    timeline: Option<PathBuf>,
    /// Seconds that everything up to the first picture may take.
    #[arg(long, default_value_t = 30)]
    timeout: u64,
    /// Milliseconds to go on painting after the first picture, so that it is complete.
    #[arg(long, default_value_t = 300)]
    linger: u64,
    /// Connect to this address rather than use the inherited socket.
    #[arg(long)]
    connect: Option<SocketAddr>,
}

#[expect(unsafe_code, reason = "an inherited descriptor is known by its number only")]
fn main() -> ExitCode {
    // SAFETY: nothing in this process has opened or taken over a descriptor yet.
    let inherited = unsafe { init_inherited_fds() };
    let started = Instant::now();
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = inherited
        .context("cannot tell which descriptors were inherited")
        .and_then(|()| runtime.context("cannot start")?.block_on(run(&arguments, started)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("first-frame: {error:#}");
            let exit = error.downcast_ref::<VisitError>().map_or(1, VisitError::exit);
            ExitCode::from(exit)
        }
    }
}

async fn run(arguments: &Arguments, started: Instant) -> anyhow::Result<()> {
    let deadline = Duration::from_secs(arguments.timeout);
    let pin: Fingerprint = env::var("TEGATA_CERT_SHA256")
        .context("TEGATA_CERT_SHA256 is not set")?
        .parse()
        .context("TEGATA_CERT_SHA256 is no pin")?;
    let visit = Visit {
        pin,
        user: env::var("TEGATA_USER").unwrap_or_default(),
        secret: timeout(deadline, secret()).await.context("the secret did not come in time")??,
        deadline,
    };
    match arguments.connect {
        Some(address) => {
            let connecting = timeout(deadline, TcpStream::connect(address)).await;
            let stream = connecting
                .context("no answer in time")?
                .with_context(|| format!("cannot connect to {address}"))?;
            keep(first_frame(stream, visit).await?, arguments, started).await
        }
        None => keep(first_frame(inherited_socket()?, visit).await?, arguments, started).await,
    }
}

/// Reports the time at once and writes the picture when it is complete.
async fn keep<S>(
    frame: FirstFrame<S>,
    arguments: &Arguments,
    started: Instant,
) -> anyhow::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Sync + Unpin,
{
    let painted = painted(frame.painted().into_std(), started)?;
    let text = serde_json::to_string(&painted).context("cannot write the time")?;
    match &arguments.timeline {
        Some(file) => fs::write(file, format!("{text}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?,
        None => println!("{text}"),
    }
    let picture = frame.complete(Duration::from_millis(arguments.linger)).await;
    write_png(&arguments.out, &picture)
        .with_context(|| format!("cannot write {}", arguments.out.display()))
}

/// Takes over the descriptor whose number an environment variable holds, if it is set.
fn inherited(variable: &str) -> anyhow::Result<Option<OwnedFd>> {
    let Some(number) = env::var_os(variable) else { return Ok(None) };
    let number = number.to_str().and_then(|number| number.parse().ok());
    let number = number.with_context(|| format!("{variable} is no number"))?;
    let descriptor = take_fd_ownership(number)
        .with_context(|| format!("{variable} names no inherited descriptor"))?;
    Ok(Some(descriptor))
}

/// The agent passes one end of a socket pair.
fn inherited_socket() -> anyhow::Result<UnixStream> {
    let descriptor = inherited("TEGATA_FD")?.context("TEGATA_FD is not set")?;
    let stream = std::os::unix::net::UnixStream::from(descriptor);
    stream.set_nonblocking(true).context("TEGATA_FD is no socket")?;
    UnixStream::from_std(stream).context("TEGATA_FD is no socket")
}

async fn secret() -> anyhow::Result<Option<String>> {
    let Some(descriptor) = inherited("TEGATA_SECRET_FD")? else { return Ok(None) };
    let pipe = pipe::Receiver::from_owned_fd(descriptor).context("TEGATA_SECRET_FD is no pipe")?;
    let mut secret = String::new();
    pipe.take(MAX_SECRET).read_to_string(&mut secret).await.context("cannot read the secret")?;
    // Whoever writes a line rather than the bytes means the same secret.
    if secret.ends_with('\n') {
        secret.pop();
    }
    Ok(Some(secret))
}

fn painted(painted: Instant, started: Instant) -> anyhow::Result<Painted> {
    let at = SystemTime::now() - painted.elapsed();
    let since = at.duration_since(UNIX_EPOCH).context("the clock stands before 1970")?;
    Ok(Painted {
        first_frame_ms: u64::try_from(painted.duration_since(started).as_millis())?,
        first_frame_at_unix_ms: u64::try_from(since.as_millis())?,
    })
}

fn write_png(path: &Path, picture: &Picture) -> anyhow::Result<()> {
    let file = BufWriter::new(File::create(path)?);
    let mut encoder = png::Encoder::new(file, u32::from(picture.width), u32::from(picture.height));
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_compression(png::Compression::Fast);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    Ok(())
}
