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

use super::{ConnectionStatus, marks::Mark};

/// A connection's task whose every wake-up is counted before it runs.
pub(in crate::connection) struct TrackedTask<F> {
    connection: F,
    tracker: Arc<TrackingWaker>,
}

impl<F> TrackedTask<F> {
    pub(in crate::connection) fn new(connection: F, status: Arc<ConnectionStatus>) -> Self {
        Self {
            connection,
            tracker: Arc::new(TrackingWaker {
                status,
                task: AtomicWaker::new(),
            }),
        }
    }
}

impl<F: Future + Unpin> Future for TrackedTask<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.tracker.task.register(cx.waker());
        // Read before the poll and stored after it: a request that arrives in between wakes the task once more.
        let seen = self.tracker.status.wakes.load(Acquire);
        let waker = Waker::from(Arc::clone(&self.tracker));
        let result = Pin::new(&mut self.connection).poll(&mut Context::from_waker(&waker));
        // A task that cannot write, or whose rows no caller takes, is pending but not done.
        if self.tracker.status.drained.load(Acquire) && !self.tracker.status.blocked.load(Acquire) {
            self.tracker.status.settled_wakes.store(seen, Release);
        }
        if result.is_ready() {
            self.tracker.status.mark_dead();
            self.tracker.status.marks.set(Mark::ENDED);
        }
        self.tracker.status.polled.notify_waiters();
        result
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
        self.status.wakes.fetch_add(1, AcqRel);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_woken_task_that_has_not_run_is_not_clean() {
        let status = ConnectionStatus::new();
        status.transaction_status.store(b'I', Release);
        status.drained.store(true, Release);
        let idle = std::future::poll_fn(|_| Poll::<()>::Pending);
        let mut task = TrackedTask::new(idle, Arc::clone(&status));
        let tracker = Arc::clone(&task.tracker);
        assert!(!status.is_clean(), "it has never run");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        assert!(status.is_clean());
        tracker.wake(); // a request was sent
        assert!(!status.is_clean());
        assert!(Pin::new(&mut task).poll(&mut cx).is_pending());
        assert!(status.is_clean());
    }
}
