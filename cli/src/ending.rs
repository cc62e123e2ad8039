//! When a command that runs on ends: at SIGINT, SIGTERM, and once the reader of its output has gone.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::low_level::pipe;

/// What there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    GoOn,
    End,
}

/// Signals and the state of stdout, to wait on beside other descriptors.
pub(crate) struct Ending {
    /// Readable from the first signal on.
    signals: UnixStream,
}

impl Ending {
    /// Handles SIGINT and SIGTERM from now on, until the process ends.
    ///
    /// Handlers are installed whatever was inherited: a shell starts background jobs with SIGINT ignored. They write
    /// to a socket. A signalfd would have to block the signals, for which neither std nor rustix has a safe call. A
    /// signal that was inherited as blocked stays blocked, as in any program.
    pub(crate) fn new() -> io::Result<Self> {
        let (signals, handler) = UnixStream::pair()?;
        for signal in [SIGINT, SIGTERM] {
            pipe::register(signal, handler.try_clone()?)?;
        }
        Ok(Self { signals })
    }

    /// Waits until a descriptor is readable.
    pub(crate) fn wait_for(&self, source: BorrowedFd<'_>) -> io::Result<Next> {
        self.poll(Some(source), io::stdout().as_fd(), PollFlags::empty())
    }

    /// Waits until a descriptor is readable, or the time is over. For a command that prints nothing on stdout.
    pub(crate) fn wait_up_to(&self, source: BorrowedFd<'_>, time: Duration) -> io::Result<Next> {
        self.wait_for_signal(Some(source), time)
    }

    /// Waits until the time is over.
    pub(crate) fn wait_time(&self, time: Duration) -> io::Result<Next> {
        self.wait_for_signal(None, time)
    }

    fn wait_for_signal(&self, source: Option<BorrowedFd<'_>>, time: Duration) -> io::Result<Next> {
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(source.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN)));
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        match poll(&mut fds, Some(&time)) {
            // A wait that a signal cuts short: the caller looks at the time again.
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        Ok(if fds[0].revents().is_empty() { Next::GoOn } else { Next::End })
    }

    /// Waits until stdout takes a line. A write that blocks would be continued after a signal.
    pub(crate) fn wait_for_stdout(&self) -> io::Result<Next> {
        self.poll(None, io::stdout().as_fd(), PollFlags::OUT)
    }

    fn poll(
        &self,
        source: Option<BorrowedFd<'_>>,
        stdout: BorrowedFd<'_>,
        of_stdout: PollFlags,
    ) -> io::Result<Next> {
        let mut fds = vec![
            PollFd::new(&self.signals, PollFlags::IN),
            // Errors and hang-ups are always reported, so nothing has to be written to notice them.
            PollFd::from_borrowed_fd(stdout, of_stdout),
        ];
        fds.extend(source.map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN)));
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        match !fds[0].revents().is_empty() || fds[1].revents().intersects(gone) {
            true => Ok(Next::End),
            false => Ok(Next::GoOn),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::thread;
    use std::time::Duration;

    use rustix::fs::{OFlags, fcntl_setfl};

    use super::*;

    #[test]
    fn a_reader_that_is_gone_and_a_signal_end_it() {
        let (signals, mut handler) = UnixStream::pair().expect("a pair");
        let ending = Ending { signals };
        let (reader, mut stdout) = io::pipe().expect("a pipe");
        let until_writable = |stdout: BorrowedFd<'_>| ending.poll(None, stdout, PollFlags::OUT);
        assert_eq!(until_writable(stdout.as_fd()).expect("polled"), Next::GoOn);

        // With a full pipe it waits, until a signal comes.
        fcntl_setfl(&stdout, OFlags::NONBLOCK).expect("set");
        while stdout.write(&[0; 4096]).is_ok() {}
        thread::scope(|scope| {
            let waits = scope.spawn(|| until_writable(stdout.as_fd()).expect("polled"));
            thread::sleep(Duration::from_millis(100));
            assert!(!waits.is_finished(), "it does not wait for the reader");
            handler.write_all(&[0]).expect("written");
            assert_eq!(waits.join().expect("no panic"), Next::End);
        });

        let (signals, _handler) = UnixStream::pair().expect("a pair");
        let ending = Ending { signals };
        drop(reader);
        let source = io::pipe().expect("a pipe").0;
        let next = ending.poll(Some(source.as_fd()), stdout.as_fd(), PollFlags::empty());
        assert_eq!(next.expect("polled"), Next::End);
    }

    #[test]
    fn a_source_that_is_readable_is_not_the_end() {
        let (signals, _handler) = UnixStream::pair().expect("a pair");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let stdout = io::pipe().expect("a pipe");
        writer.write_all(&[0]).expect("written");
        let ending = Ending { signals };
        let next = ending.poll(Some(reader.as_fd()), stdout.1.as_fd(), PollFlags::empty());
        assert_eq!(next.expect("polled"), Next::GoOn);
    }
}
