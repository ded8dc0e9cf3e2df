//! Bytes between a viewer and its desktop, over one link after another.
//!
//! The viewer's side stays while links come and go: what came from the viewer is
//! kept until the gateway has acknowledged it, and what was written to the viewer
//! is counted, so that the next link begins where the last one stopped. Looks at
//! nothing but the desktop's first answer, which must not lower the security that
//! the broker promised ([`crate::viewer::x224`]).

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use tegata_proto::id::LinkNumber;
use tegata_proto::policy::Security;
use tegata_proto::replay::{BadOffset, Receipt, Replay};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep, timeout};

use crate::link::{CHUNK_MAX, LinkError, RecvStream, SendStream};
use crate::viewer::x224::{self, NotSecured, Verdict};

/// Bytes of a viewer's that are kept until the gateway has acknowledged them;
/// less than may wait in a connection, so that a dead link never stops its own watch.
const REPLAY: u64 = 1024 * 1024;

/// Longest piece read from a viewer at once, in bytes.
const READ_MAX: usize = 64 * 1024;

/// Room for a read below which another buffer is taken, in bytes. Pieces share a
/// buffer until then, so that a kept keystroke does not pin one of its own.
const READ_MIN: usize = 8 * 1024;

/// How long the second direction may go on after the first has ended; where it was the
/// viewer that ended, after everything anew that arrives.
const LINGER: Duration = Duration::from_secs(3);

/// How long a viewer that has closed waits for a link that brings its last words to the
/// desktop, or the desktop's to it.
const LAST_WORDS_WAIT: Duration = Duration::from_secs(10);

/// Which side ended the stream of bytes.
#[derive(Debug)]
pub(crate) enum End {
    /// The viewer closed its socket.
    Viewer,
    /// The desktop closed its connection.
    Desktop,
    /// The desktop, or whoever carries its bytes, would not secure them.
    NotSecured(NotSecured),
    /// No link goes there any more.
    Lost,
}

/// One of the two between whom bytes are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Viewer,
    Desktop,
}

/// How far a desktop's connection has got, both ways, over all its links.
#[derive(Debug)]
pub(crate) struct Account {
    state: Mutex<State>,
    /// Another line is there, or none will be.
    line: Notify,
    /// Something was acknowledged.
    room: Notify,
    /// Something was written to the viewer.
    written: Notify,
    /// Something was sent.
    sent: Notify,
    /// The line carries nothing any more.
    cut: Notify,
}

#[derive(Debug)]
struct State {
    replay: Replay,
    receipt: Receipt,
    acknowledged: u64,
    /// Whether the present line still brings what the one before had. The gateway has
    /// not sent the rest over this one, and is not to skip it.
    is_behind: bool,
    /// What another link still says it has sent does not count.
    link: LinkNumber,
    next: Option<Line>,
    over: bool,
    /// Whether another line may come soon.
    is_awaiting: bool,
    /// Which of the two closed first, if one has: there is nothing to begin again for then.
    ended: Option<Side>,
    /// The last link whose line was cut.
    cut: Option<LinkNumber>,
    /// Where the viewer's last bytes are on their way; finished where they all are.
    last: Option<SendStream>,
}

/// The desktop's stream on one link.
#[derive(Debug)]
pub(crate) struct Line {
    pub(crate) link: LinkNumber,
    pub(crate) send: SendStream,
    pub(crate) recv: RecvStream,
    /// The offset of the next byte that it brings.
    pub(crate) from: u64,
}

impl Account {
    /// Begins a desktop's connection, over its first line.
    pub(crate) fn new(line: Line) -> Self {
        let state = State {
            replay: Replay::new(REPLAY),
            receipt: Receipt::default(),
            acknowledged: 0,
            is_behind: false,
            link: line.link,
            next: Some(line),
            over: false,
            is_awaiting: false,
            ended: None,
            cut: None,
            last: None,
        };
        Self {
            state: Mutex::new(state),
            line: Notify::new(),
            room: Notify::new(),
            written: Notify::new(),
            sent: Notify::new(),
            cut: Notify::new(),
        }
    }

    /// Goes on over another line, to a gateway that has written so much onward.
    ///
    /// # Errors
    ///
    /// Refuses an offset that the gateway cannot have reached, or whose following
    /// bytes are forgotten. Nothing is changed then.
    pub(crate) fn resume(&self, line: Line, received: u64) -> Result<(), BadOffset> {
        let mut state = self.state();
        state.replay.resume(received)?;
        state.link = line.link;
        state.is_behind = true;
        state.next = Some(line);
        drop(state);
        self.line.notify_one();
        Ok(())
    }

    /// Tells whether [`resume`](Self::resume) would succeed.
    pub(crate) fn may_resume(&self, received: u64) -> bool {
        self.state().replay.may_resume(received)
    }

    /// Takes no further line: the bytes end where the present one ends.
    pub(crate) fn close(&self) {
        self.state().over = true;
        self.line.notify_one();
    }

    /// Notes whether another link is on its way, whose line may come soon.
    pub(crate) fn awaits_line(&self, is_awaiting: bool) {
        self.state().is_awaiting = is_awaiting;
    }

    /// Notes that one side has closed.
    pub(crate) fn ended(&self, side: Side) {
        self.state().ended.get_or_insert(side);
    }

    /// Tells whether the viewer or the desktop has closed.
    pub(crate) fn has_ended(&self) -> bool {
        self.first_end().is_some()
    }

    /// Returns which side closed first, if one has.
    pub(crate) fn first_end(&self) -> Option<Side> {
        self.state().ended
    }

    /// Returns where the viewer's last bytes are on their way, once the bytes are over.
    pub(crate) fn last(&self) -> Option<SendStream> {
        self.state().last.take()
    }

    /// Forgets what the gateway has written onward.
    ///
    /// # Errors
    ///
    /// Refuses what was never sent.
    pub(crate) fn acknowledged(&self, received: u64) -> Result<(), BadOffset> {
        let mut state = self.state();
        state.replay.acknowledge(received)?;
        state.acknowledged = state.acknowledged.max(received);
        drop(state);
        self.room.notify_one();
        Ok(())
    }

    /// Returns how many bytes were written to the viewer.
    pub(crate) fn written(&self) -> u64 {
        self.state().receipt.written()
    }

    /// Returns a number that grows with what is known to have arrived at either end.
    pub(crate) fn progress(&self) -> u64 {
        let state = self.state();
        state.receipt.written() + state.acknowledged
    }

    /// Waits until the gateway is owed word of at least so many bytes.
    pub(crate) async fn owed(&self, bytes: u64) {
        while self.state().owed() < bytes {
            self.written.notified().await;
        }
    }

    /// Returns what to acknowledge, and notes that it is said.
    pub(crate) fn say(&self) -> u64 {
        self.state().say()
    }

    /// Waits until bytes have been sent.
    pub(crate) async fn sent(&self) {
        self.sent.notified().await;
    }

    /// Waits until the present line has turned out to carry nothing any more.
    pub(crate) async fn cut(&self) {
        while !self.state().take_cut() {
            self.cut.notified().await;
        }
    }

    /// The present line has brought all that the one before had.
    fn caught_up(&self) {
        self.state().is_behind = false;
        self.written.notify_one();
    }

    fn wrote(&self, bytes: usize) {
        self.state().receipt.wrote(bytes as u64);
        self.written.notify_one();
    }

    fn push(&self, bytes: Bytes) {
        self.state().replay.push(bytes);
    }

    fn has_room(&self) -> bool {
        self.state().replay.has_room()
    }

    fn unsent(&self, link: LinkNumber) -> Option<Bytes> {
        let state = self.state();
        if state.link == link { state.replay.unsent() } else { None }
    }

    fn advance(&self, link: LinkNumber, bytes: usize) {
        let mut state = self.state();
        if state.link == link {
            state.replay.advance(bytes);
        }
        drop(state);
        self.sent.notify_one();
    }

    /// Returns the next line; nothing when there is none and there will be none.
    async fn next_line(&self, is_carried: bool) -> Option<Line> {
        loop {
            let (next, is_over) = self.state().take_next();
            if next.is_some() || (is_over && !is_carried) {
                return next;
            }
            self.line.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in it can panic half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn owed(&self) -> u64 {
        if self.is_behind { 0 } else { self.receipt.owed() }
    }

    fn say(&mut self) -> u64 {
        if self.is_behind {
            self.receipt.written() - self.receipt.owed()
        } else {
            self.receipt.say()
        }
    }

    /// Tells, once, whether the present link's line was cut.
    fn take_cut(&mut self) -> bool {
        let link = self.link;
        self.cut.take_if(|cut| *cut == link).is_some()
    }

    fn take_next(&mut self) -> (Option<Line>, bool) {
        (self.next.take(), self.over)
    }
}

/// A desktop's bytes, as they are given to a viewer.
pub(crate) struct DesktopStream<'a> {
    pub(crate) account: &'a Account,
    /// What the desktop must agree to, where it speaks RDP.
    pub(crate) security: Option<Security>,
    /// Told when the first byte for the viewer is there.
    pub(crate) first_byte: oneshot::Sender<()>,
}

/// Where a viewer's bytes come from.
struct Source<R> {
    viewer: R,
    buffer: BytesMut,
    has_ended: bool,
}

/// Where a desktop's bytes go.
struct Sink<W> {
    viewer: W,
    /// What the desktop must confirm before a byte of it is written.
    security: Option<Security>,
    /// The desktop's first bytes, as far as they were looked at. They are kept, so
    /// that no later link can put others in their place.
    first: Vec<u8>,
    first_byte: Option<oneshot::Sender<()>>,
}

/// Why one link carries no more.
enum Stopped {
    /// The bytes are over.
    Ended(End),
    /// The link is; another may come.
    Cut(LinkError),
}

impl DesktopStream<'_> {
    /// Reads and drops what the desktop sends, until it ends.
    pub(crate) async fn drain(self) -> End {
        // Nobody writes to the other end.
        let (_silent, never) = tokio::io::duplex(1);
        self.splice(never, tokio::io::sink()).await
    }

    /// Carries bytes both ways, until both sides have closed, or one has and the
    /// other does not follow, or no link is left to carry them.
    pub(crate) async fn splice(
        self,
        from_viewer: impl AsyncRead + Unpin,
        to_viewer: impl AsyncWrite + Unpin,
    ) -> End {
        let Self { account, security, first_byte } = self;
        let mut source = Source { viewer: from_viewer, buffer: BytesMut::new(), has_ended: false };
        let first_byte = Some(first_byte);
        let mut sink = Sink { viewer: to_viewer, security, first: Vec::new(), first_byte };
        let mut line = None;
        loop {
            tokio::select! {
                biased;
                next = account.next_line(line.is_some()) => match next {
                    Some(next) => line = Some(next),
                    None if source.has_ended => return End::Viewer,
                    None => return End::Lost,
                },
                stopped = carry(account, line.as_mut(), &mut source, &mut sink) => match stopped {
                    Stopped::Ended(end) => {
                        account.state().last = line.map(|line| line.send);
                        return end;
                    }
                    Stopped::Cut(error) => {
                        tracing::debug!(%error, "The desktop's stream was cut");
                        account.state().cut = line.map(|line| line.link);
                        account.cut.notify_one();
                        line = None;
                    }
                },
            }
        }
    }
}

/// Carries bytes over one line, or keeps them where there is none. Dropped, it
/// loses nothing that the account does not know of.
async fn carry(
    account: &Account,
    line: Option<&mut Line>,
    source: &mut Source<impl AsyncRead + Unpin>,
    sink: &mut Sink<impl AsyncWrite + Unpin>,
) -> Stopped {
    let Some(Line { link, send, recv, from }) = line else {
        return Stopped::Ended(keep(account, source).await);
    };
    let mut up = pin!(up(account, *link, source, send));
    let mut down = pin!(down(account, recv, from, sink));
    tokio::select! {
        stopped = &mut up => {
            if matches!(stopped, Stopped::Ended(End::Viewer)) {
                // What the desktop still says may come over the next link.
                if let Some(cut @ Stopped::Cut(_)) = hear_out(account, down).await {
                    return cut;
                }
            }
            stopped
        }
        stopped = &mut down => {
            match stopped {
                Stopped::Ended(End::Desktop) => {
                    account.ended(Side::Desktop);
                    let _ = timeout(LINGER, up).await;
                    if account.first_end() == Some(Side::Viewer) {
                        // It had not said all to a desktop that went as well.
                        return Stopped::Ended(End::Viewer);
                    }
                }
                // It takes no more; what it has said may go over the next link.
                Stopped::Ended(End::Viewer) => {
                    account.ended(Side::Viewer);
                    if let Some(cut @ Stopped::Cut(_)) = hear_out(account, up).await {
                        return cut;
                    }
                }
                Stopped::Ended(End::NotSecured(_) | End::Lost) => account.ended(Side::Desktop),
                Stopped::Cut(_) => {}
            }
            stopped
        }
    }
}

/// Carries the other direction of a viewer that has closed, for as long as something
/// arrives.
async fn hear_out(
    account: &Account,
    mut other: impl Future<Output = Stopped> + Unpin,
) -> Option<Stopped> {
    let (mut progress, mut since) = (account.progress(), Instant::now());
    loop {
        if let Ok(stopped) = timeout(LINGER, &mut other).await {
            return Some(stopped);
        }
        if account.progress() > progress {
            (progress, since) = (account.progress(), Instant::now());
        } else if !account.state().is_awaiting || since.elapsed() >= LAST_WORDS_WAIT {
            return None;
        }
    }
}

/// Reads what the viewer sends as far as there is room, until it closes; then waits a
/// while for a link that brings its last words to the desktop.
async fn keep(account: &Account, source: &mut Source<impl AsyncRead + Unpin>) -> End {
    while !source.has_ended {
        if account.has_room() {
            source.read(account).await;
        } else {
            account.room.notified().await;
        }
    }
    sleep(LAST_WORDS_WAIT).await;
    End::Viewer
}

async fn up(
    account: &Account,
    link: LinkNumber,
    source: &mut Source<impl AsyncRead + Unpin>,
    send: &mut SendStream,
) -> Stopped {
    loop {
        let mut unsent = account.unsent(link);
        if unsent.is_none() && source.has_ended {
            send.finish();
            return Stopped::Ended(End::Viewer);
        }
        let has_room = account.has_room();
        let written = async {
            let chunk = unsent.as_mut()?;
            Some(send.write(chunk).await)
        };
        tokio::select! {
            biased;
            Some(written) = written => match written {
                Ok(written) => account.advance(link, written),
                Err(error) => return Stopped::Cut(error),
            },
            () = source.read(account), if has_room && !source.has_ended => {}
            () = account.room.notified(), if !has_room => {}
        }
    }
}

async fn down(
    account: &Account,
    recv: &mut RecvStream,
    from: &mut u64,
    sink: &mut Sink<impl AsyncWrite + Unpin>,
) -> Stopped {
    let mut is_behind = true;
    loop {
        let wanted = match sink.judge() {
            Verdict::Secured => {
                if let Err(end) = sink.write_first(account).await {
                    return Stopped::Ended(end);
                }
                CHUNK_MAX
            }
            Verdict::NotSecured(reason) => return Stopped::Ended(End::NotSecured(reason)),
            Verdict::More(wanted) => wanted,
        };
        // What the link before has brought is not taken twice.
        let taken = account.written().max(sink.first.len() as u64);
        let again = usize::try_from(taken.saturating_sub(*from)).unwrap_or(usize::MAX);
        if is_behind && again == 0 {
            is_behind = false;
            account.caught_up();
        }
        let mut bytes = match recv.read(wanted.max(again)).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => {
                let _ = sink.viewer.shutdown().await;
                return Stopped::Ended(End::Desktop);
            }
            Err(error) => return Stopped::Cut(error),
        };
        *from += bytes.len() as u64;
        bytes.advance(again.min(bytes.len()));
        if let Err(end) = sink.take(account, bytes).await {
            return Stopped::Ended(end);
        }
    }
}

impl<R: AsyncRead + Unpin> Source<R> {
    /// Reads once, into the account.
    async fn read(&mut self, account: &Account) {
        if self.buffer.capacity() < READ_MIN {
            self.buffer.reserve(READ_MAX);
        }
        match self.viewer.read_buf(&mut self.buffer).await {
            Ok(1..) => return account.push(self.buffer.split().freeze()),
            Ok(0) => {}
            Err(error) => tracing::info!(%error, "The viewer can no longer be read from"),
        }
        self.has_ended = true;
        account.ended(Side::Viewer);
    }
}

impl<W: AsyncWrite + Unpin> Sink<W> {
    fn judge(&self) -> Verdict {
        self.security.map_or(Verdict::Secured, |asked| x224::confirms(&self.first, asked))
    }

    /// Takes the desktop's next bytes.
    async fn take(&mut self, account: &Account, bytes: Bytes) -> Result<(), End> {
        match self.judge() {
            Verdict::Secured => self.write(account, &bytes).await,
            Verdict::More(_) | Verdict::NotSecured(_) => {
                self.first.extend_from_slice(&bytes);
                Ok(())
            }
        }
    }

    /// Writes what was held back until it was judged, as far as it was not yet.
    async fn write_first(&mut self, account: &Account) -> Result<(), End> {
        loop {
            let written = usize::try_from(account.written()).unwrap_or(usize::MAX);
            let Some(rest @ [_, ..]) = self.first.get(written..) else { return Ok(()) };
            tell(&mut self.first_byte);
            account.wrote(some(self.viewer.write(rest).await)?);
        }
    }

    async fn write(&mut self, account: &Account, mut bytes: &[u8]) -> Result<(), End> {
        while !bytes.is_empty() {
            tell(&mut self.first_byte);
            let written = some(self.viewer.write(bytes).await)?;
            account.wrote(written);
            bytes.advance(written);
        }
        Ok(())
    }
}

fn tell(first_byte: &mut Option<oneshot::Sender<()>>) {
    if let Some(first_byte) = first_byte.take() {
        let _ = first_byte.send(());
    }
}

/// Says what a write to a viewer came to.
fn some(written: io::Result<usize>) -> Result<usize, End> {
    match written {
        Ok(0) => Err(End::Viewer),
        Ok(written) => Ok(written),
        Err(error) => {
            tracing::info!(%error, "The viewer takes no more");
            Err(End::Viewer)
        }
    }
}
