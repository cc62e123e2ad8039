//! The thread that a proof starts, and the state of the calling thread around it.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{Errno, Sys, last_errno};

/// While this exists, the calling thread runs no signal handler
/// ([`Kernel::undisturbed`](crate::kernel::Kernel::undisturbed)).
pub(crate) struct Undisturbed {
    /// The previous mask.
    before: Mask,
    /// Not Send: it belongs to the thread that created it.
    _not_send: PhantomData<*const ()>,
}

/// The kernel's set of signals, one bit each. MIPS has twice as many.
type Mask = [u64; if cfg!(any(target_arch = "mips", target_arch = "mips64")) { 2 } else { 1 }];

impl Undisturbed {
    /// Makes the system call directly: `pthread_sigmask(3)` leaves out the two signals that the C library uses
    /// itself (for `pthread_cancel(3)` and `setuid(2)`). Here their handlers wait, too.
    pub(in crate::kernel) fn begin() -> Sys<Self> {
        let before = set_mask(libc::SIG_BLOCK, &[u64::MAX; size_of::<Mask>() / 8])?;
        Ok(Self { before, _not_send: PhantomData })
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        // It cannot fail for a mask that the kernel has returned.
        let _ = set_mask(libc::SIG_SETMASK, &self.before);
    }
}

/// `rt_sigprocmask(2)`: returns the previous mask.
fn set_mask(how: libc::c_int, mask: &Mask) -> Sys<Mask> {
    let mut before = Mask::default();
    let (new, old) = (std::ptr::from_ref(mask), &raw mut before);
    // SAFETY: both point to masks of the size that is given, the second one to be written.
    let failed =
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, new, old, size_of::<Mask>()) };
    if failed == 0 { Ok(before) } else { Err(last_errno()) }
}

fn gettid() -> u32 {
    rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned()
}

/// `PTHREAD_CANCEL_DISABLE` (`pthread.h` of glibc and musl).
const CANCEL_DISABLE: libc::c_int = 1;

unsafe extern "C" {
    /// `pthread_setcancelstate(3)`.
    safe fn pthread_setcancelstate(
        state: libc::c_int,
        before: Option<&mut libc::c_int>,
    ) -> libc::c_int;
}

/// While this exists, the calling thread is not cancelled (`pthread_cancel(3)`), so everything that it holds is
/// closed.
pub(crate) struct Uncancelled(libc::c_int, PhantomData<*const ()>);

impl Uncancelled {
    pub(crate) fn begin() -> Self {
        let mut before = 0;
        pthread_setcancelstate(CANCEL_DISABLE, Some(&mut before));
        Self(before, PhantomData)
    }
}

impl Drop for Uncancelled {
    fn drop(&mut self) {
        let mut now = 0;
        pthread_setcancelstate(self.0, Some(&mut now));
    }
}

/// The function that a thread starts with. Its argument points to the thread's job. Nobody else touches the job
/// before the thread has exited.
type Start = extern "C" fn(*mut c_void) -> *mut c_void;

/// What a thread runs, and where it stores the result.
struct Job<'a, T, F> {
    run: &'a mut F,
    result: Option<std::thread::Result<T>>,
}

impl<'a, T, F: FnMut() -> T> Job<'a, T, F> {
    fn new(run: &'a mut F) -> Self {
        Self { run, result: None }
    }

    /// The start of a thread for jobs of this type.
    fn start(&self) -> Start {
        extern "C" fn start<T, F: FnMut() -> T>(job: *mut c_void) -> *mut c_void {
            // SAFETY: a job of this type, which nothing else touches before the thread has exited (`Start`).
            let job = unsafe { &mut *job.cast::<Job<'_, T, F>>() };
            job.result = Some(catch_unwind(AssertUnwindSafe(|| (job.run)())));
            std::ptr::null_mut()
        }
        start::<T, F>
    }

    fn finish(self) -> Sys<T> {
        match self.result {
            Some(Ok(result)) => Ok(result),
            Some(Err(panic)) => resume_unwind(panic),
            None => Err(Errno::AGAIN),
        }
    }
}

/// Runs a closure on a new thread, with the id of that thread, and waits for it.
///
/// On the architectures below, a bare system call starts the thread, which takes three calls instead of eleven. The
/// thread has the thread-local storage of the caller. So `run` must not allocate: an allocator may keep its state
/// by thread in a way that needs a thread of the C library (restartable sequences, `rseq(2)`). If the call is
/// refused, the C library starts the thread.
pub(in crate::kernel) fn on_new_thread<T: Send>(
    run: &mut (impl FnMut(u32) -> T + Send),
    _undisturbed: &Undisturbed,
) -> Sys<T> {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    {
        let id = AtomicU32::new(0);
        let mut run = || run(id.load(Relaxed));
        let mut job = Job::new(&mut run);
        let start = job.start();
        // SAFETY: `start` belongs to this job, which nothing touches before the thread has exited. No signal
        // handler runs on this thread, as `_undisturbed` guarantees.
        if unsafe { bare::run(start, (&raw mut job).cast(), &id) }.is_ok() {
            return job.finish();
        }
    }
    on_library_thread(&mut || run(gettid()))
}

#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod bare {
    use std::arch::asm;
    use std::ffi::c_void;
    use std::sync::atomic::{AtomicU32, Ordering::Acquire};

    use rustix::thread::futex;

    use super::{Errno, Start, Sys};

    /// The code that runs there calls the kernel, and has its long buffers elsewhere. The stack is on the heap, since the
    /// caller's own may be a small one.
    const STACK: usize = 64 << 10;

    /// A unit of the stack, whose top the C ABI wants aligned.
    #[repr(C, align(16))]
    struct Unit([u8; 16]);

    /// The flags of `pthread_create(3)`, except for the thread-local storage: the thread uses that of the caller,
    /// which waits. The kernel writes the thread's id where the caller waits, clears it when the thread has exited,
    /// and wakes the caller (`set_tid_address(2)`).
    const FLAGS: libc::c_int = libc::CLONE_VM
        | libc::CLONE_FS
        | libc::CLONE_FILES
        | libc::CLONE_SIGHAND
        | libc::CLONE_THREAD
        | libc::CLONE_SYSVSEM
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_CLEARTID;

    /// Calls `start(job)` on a new thread and waits until the thread has exited. The thread finds its id in `id`.
    ///
    /// # Errors
    /// The errno of `clone(2)`; `start` was not called.
    ///
    /// # Safety
    /// `start` belongs to `job`, which nobody touches before this returns. Meanwhile no signal handler runs on this
    /// thread, whose thread-local storage is in use.
    pub(super) unsafe fn run(start: Start, job: *mut c_void, id: &AtomicU32) -> Sys<()> {
        let mut stack = Vec::<Unit>::new();
        let units = STACK / size_of::<Unit>();
        stack.try_reserve_exact(units).map_err(|_| Errno::NOMEM)?;
        let top = stack.as_mut_ptr().wrapping_add(units);
        // SAFETY: as the caller guarantees; the stack and the word outlive the thread, which is waited for below.
        unsafe { clone(start, job, top, id) }?;
        loop {
            match id.load(Acquire) {
                0 => return Ok(()),
                // The kernel's wake-up is not private to the process, so neither is this wait.
                thread => {
                    let _ = futex::wait(id, futex::Flags::empty(), thread, None);
                }
            }
        }
    }

    /// # Safety
    /// As [`run`]; `top` is the end of a stack. That and `id` are left alone until the kernel has cleared `id`.
    unsafe fn clone(start: Start, job: *mut c_void, top: *mut Unit, id: &AtomicU32) -> Sys<()> {
        let result: isize;
        // SAFETY: the kernel returns twice. Here the result is not 0, and all registers but those of the call are
        // as before. The new thread has its own registers and stack. The top of the stack is aligned to 16 bytes, as
        // the C ABI requires. It never leaves this block.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            asm!(
                "syscall",
                "test rax, rax",
                "jnz 2f",
                "xor ebp, ebp",
                "mov rdi, {job}",
                "call {start}",
                "xor edi, edi",
                "mov eax, {exit}",
                "syscall",
                "ud2",
                "2:",
                job = in(reg) job,
                start = in(reg) start,
                exit = const libc::SYS_exit,
                inlateout("rax") libc::SYS_clone as isize => result,
                in("rdi") FLAGS as isize,
                in("rsi") top,
                in("rdx") id.as_ptr(),
                in("r10") id.as_ptr(),
                in("r8") 0,
                out("rcx") _,
                out("r11") _,
            );
        }
        // SAFETY: as above.
        #[cfg(target_arch = "aarch64")]
        unsafe {
            asm!(
                "svc #0",
                "cbnz x0, 2f",
                "mov x29, xzr",
                "mov x30, xzr",
                "mov x0, {job}",
                "blr {start}",
                "mov x0, xzr",
                "mov x8, #{exit}",
                "svc #0",
                "brk #1",
                "2:",
                job = in(reg) job,
                start = in(reg) start,
                exit = const libc::SYS_exit,
                in("x8") libc::SYS_clone,
                inlateout("x0") FLAGS as isize => result,
                in("x1") top,
                in("x2") id.as_ptr(),
                in("x3") 0,
                in("x4") id.as_ptr(),
            );
        }
        match result {
            1.. => Ok(()),
            error => Err(Errno::from_raw_os_error(-error as i32)),
        }
    }
}

/// Room for the code that runs there and for the program's thread-local variables.
const STACK: usize = 256 << 10;

/// As [`on_new_thread`], but on a thread of the C library, where `run` may allocate. It does not use std's threads:
/// they allocate a signal stack when they start, and abort the process if that fails.
fn on_library_thread<T: Send, F: FnMut() -> T + Send>(run: &mut F) -> Sys<T> {
    let mut job = Job::new(run);
    let mut attributes = MaybeUninit::uninit();
    // SAFETY: it initialises the attributes.
    let failed = unsafe { libc::pthread_attr_init(attributes.as_mut_ptr()) };
    if failed != 0 {
        return Err(Errno::from_raw_os_error(failed));
    }
    // SAFETY: the attributes are initialised. A size that is too small is refused, and leaves the default.
    unsafe { libc::pthread_attr_setstacksize(attributes.as_mut_ptr(), STACK) };
    let start = job.start();
    let mut thread = MaybeUninit::uninit();
    let mut create = |attributes| {
        let job = (&raw mut job).cast();
        // SAFETY: the attributes are initialised or none. `start` is that of this job, which outlives the thread and is
        // not touched before the thread is joined below.
        unsafe { libc::pthread_create(thread.as_mut_ptr(), attributes, start, job) }
    };
    let mut failed = create(attributes.as_ptr());
    if failed == libc::EINVAL {
        // The stack is too small: the program's thread-local variables alone are larger.
        failed = create(std::ptr::null());
    }
    // SAFETY: the attributes are initialised and not used again.
    unsafe { libc::pthread_attr_destroy(attributes.as_mut_ptr()) };
    if failed != 0 {
        return Err(Errno::from_raw_os_error(failed));
    }
    // SAFETY: the thread was created.
    let thread = unsafe { thread.assume_init() };
    // SAFETY: the thread is joinable, and nobody else knows it. (A join fails for no such thread.)
    unsafe { libc::pthread_join(thread, std::ptr::null_mut()) };
    job.finish()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    static HANDLED: AtomicUsize = AtomicUsize::new(0);

    extern "C" fn handle(_signal: libc::c_int) {
        HANDLED.fetch_add(1, Relaxed);
    }

    #[test]
    fn signal_handlers_wait_until_the_guard_is_dropped() {
        // SAFETY: the handler only counts, and nothing else here uses the signal.
        unsafe { libc::signal(libc::SIGUSR1, handle as *const () as libc::sighandler_t) };
        let raise = || {
            // SAFETY: it sends a signal to this thread, which has a handler.
            unsafe { libc::raise(libc::SIGUSR1) };
            HANDLED.load(Relaxed)
        };
        let outer = Undisturbed::begin().expect("masked");
        let inner = Undisturbed::begin().expect("masked");
        assert_eq!(raise(), 0);
        drop(inner);
        assert_eq!(raise(), 0, "the outer guard still exists");
        drop(outer);
        assert_eq!(HANDLED.load(Relaxed), 1, "both were pending as one");
        assert_eq!(raise(), 2);
    }

    /// `SigBlk` of this thread: the two signals of the C library are in it, too.
    #[test]
    fn every_blockable_signal_is_blocked_and_the_mask_is_restored() {
        let blocked = || set_mask(libc::SIG_BLOCK, &Mask::default()).expect("the mask")[0];
        let before = blocked();
        let undisturbed = Undisturbed::begin().expect("masked");
        let never = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);
        assert_eq!(blocked(), !never);
        drop(undisturbed);
        assert_eq!(blocked(), before);
    }

    #[test]
    fn both_kinds_of_thread_run_apart_from_the_caller_with_its_memory() {
        let caller = gettid();
        for round in 0..200 {
            let undisturbed = Undisturbed::begin().expect("masked");
            let mut sum = 0;
            let mut run = |thread| {
                sum += 1;
                assert_eq!(thread, gettid());
                (thread, std::process::id())
            };
            let (bare, process) = on_new_thread(&mut run, &undisturbed).expect("a thread");
            let (library, _) = on_library_thread(&mut || run(gettid())).expect("a thread");
            assert_eq!(process, std::process::id());
            assert_ne!(bare, caller, "round {round}");
            assert_ne!(library, caller);
            assert_eq!(sum, 2);
        }
        assert_eq!(gettid(), caller);
    }

    /// A program may have threads with little more than the least stack that there is.
    #[test]
    fn a_thread_with_a_small_stack_can_start_one() {
        let small = std::thread::Builder::new().stack_size(48 << 10);
        let run = || {
            let undisturbed = Undisturbed::begin().expect("masked");
            on_new_thread(&mut |thread| thread, &undisturbed).expect("a thread")
        };
        assert_ne!(small.spawn(run).expect("a thread").join().expect("no panic"), gettid());
    }

    #[test]
    fn a_panic_reaches_the_caller() {
        let panicked = catch_unwind(|| on_library_thread(&mut || assert_eq!(1, 2, "on purpose")));
        assert!(panicked.is_err());
    }

    /// Many at once, each with the thread-local storage of its caller.
    #[test]
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    fn a_bare_thread_has_the_storage_of_its_caller() {
        use std::cell::Cell;
        thread_local!(static MARK: Cell<u32> = const { Cell::new(0) });
        std::thread::scope(|scope| {
            for mark in 1..=8 {
                scope.spawn(move || {
                    MARK.set(mark);
                    for _ in 0..100 {
                        let undisturbed = Undisturbed::begin().expect("masked");
                        let mut run = |_| MARK.replace(MARK.get() + 8);
                        let seen = on_new_thread(&mut run, &undisturbed).expect("a thread");
                        assert_eq!(seen % 8, mark % 8);
                        assert_eq!(MARK.get(), seen + 8);
                    }
                });
            }
        });
    }
}
