//! Tracks when a connection's task is woken, and when it has run.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::Ordering::{AcqRel, Acquire, Release},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

use super::ConnectionStatus;

/// A connection's task whose every wake-up is counted before it runs.
pub(in crate::connection) struct TrackedTask<F> {
    connection: F,
    bell: Arc<TrackingWaker>,
}

impl<F> TrackedTask<F> {
    pub(in crate::connection) fn new(connection: F, status: Arc<ConnectionStatus>) -> Self {
        Self {
            connection,
            bell: Arc::new(TrackingWaker {
                status,
                task: AtomicWaker::new(),
            }),
        }
    }
}

impl<F: Future + Unpin> Future for TrackedTask<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.bell.task.register(cx.waker());
        // Read before the poll and stored after it: a request that arrives in between wakes the task once more.
        let woken = self.bell.status.woken.load(Acquire);
        let waker = Waker::from(Arc::clone(&self.bell));
        let polled = Pin::new(&mut self.connection).poll(&mut Context::from_waker(&waker));
        // A task that cannot write, or whose rows no caller takes, is pending but not done.
        if self.bell.status.drained.load(Acquire) && !self.bell.status.blocked.load(Acquire) {
            self.bell.status.settled.store(woken, Release);
        }
        if polled.is_ready() {
            self.bell.status.mark_dead();
            self.bell.status.ended.store(true, Release);
        }
        self.bell.status.turned.notify_waiters();
        polled
    }
}

/// Wakes the connection's task, and counts the wake-up before that.
struct TrackingWaker {
    status: Arc<ConnectionStatus>,
    task: AtomicWaker,
}

impl Wake for TrackingWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.status.woken.fetch_add(1, AcqRel);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_woken_task_that_has_not_run_is_not_clean() {
        let status = ConnectionStatus::new();
        status.status.store(b'I', Release);
        status.drained.store(true, Release);
        let idle = std::future::poll_fn(|_| Poll::<()>::Pending);
        let mut task = TrackedTask::new(idle, Arc::clone(&status));
        let bell = Arc::clone(&task.bell);
        assert!(!status.is_clean(), "it has never run");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        assert!(status.is_clean());
        bell.wake(); // a request was sent
        assert!(!status.is_clean());
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        assert!(status.is_clean());
    }
}
