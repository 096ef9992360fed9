//! Staying below Neon's rate limit.
//!
//! Neon takes 700 requests a minute and 40 a second on one route, and answers 429 beyond that. It is not documented
//! whether it counts by key, by organization or by account. All clients of one key at one address share one line,
//! regardless of the part of the process that built them. Requests pass in order of arrival, those of
//! [`Neon::background`](super::Neon::background) after all others. A burst passes at once, and the rest at an even
//! pace.

mod account;
mod line;
mod rate;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use url::Url;

use self::line::{Line, QueueEntry};
use crate::{
    model::{
        error::{Error, ErrorKind},
        secret::Secret,
    },
    sync::{
        lock,
        progress::{Class, Progress},
    },
};

pub(super) use rate::{PER_MINUTE, PER_SECOND, Rate};

/// Longest hold of a route after one answer: Neon's limits are per minute.
const LONGEST_HOLD: Duration = Duration::from_secs(60);

/// A client's share in the line of its key.
///
/// While clients with different rates share the line, the smallest rate applies to all of them.
#[derive(Debug)]
pub(super) struct Limiter {
    // The lock is held for a few instructions.
    line: Arc<Mutex<Line>>,
    rate: Rate,
}

impl Limiter {
    /// Creates the limiter of a client that sends `key` to `base`.
    pub(super) fn new(base: &Url, key: &Secret, rate: Rate) -> Self {
        let line = account::line_of(base, key);
        lock(&line).enter(rate, Instant::now());
        Self { line, rate }
    }

    /// Waits for the turn of one more request of `route`.
    ///
    /// # Errors
    /// [`ErrorKind::RateLimited`], with the time to wait, as soon as it is known that the turn would come after the
    /// deadline. This is known at once, unless later requests of a higher class pass first.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the line, and the requests behind it move up. If it is not polled, they pass it after
    /// about a second, until it is polled again.
    pub(super) async fn pass(
        &self,
        route: &'static str,
        class: Class,
        progress: &Progress,
    ) -> Result<(), Error> {
        let place = QueueSlot {
            line: &self.line,
            ticket: lock(&self.line).join(route, class),
        };
        while let Some(look) = place.look(progress.deadline())? {
            sleep_until(look).await;
        }
        Ok(())
    }

    /// Lets no request of `route` pass for `wait`, as Neon asked. Other routes are not held, because some routes, such
    /// as that of consumption, have a limit of their own.
    pub(super) fn hold(&self, route: &'static str, wait: Duration) {
        let until = Instant::now() + wait.min(LONGEST_HOLD);
        lock(&self.line).hold(route, until);
    }
}

impl Drop for Limiter {
    fn drop(&mut self) {
        lock(&self.line).exit(self.rate, Instant::now());
    }
}

/// A request's place in the line. Dropping it leaves the line.
struct QueueSlot<'a> {
    line: &'a Mutex<Line>,
    ticket: QueueEntry,
}

impl QueueSlot<'_> {
    /// Passes and returns `None` if it is the request's turn; otherwise returns the time of the next look. Fails if the
    /// turn does not come before `deadline`.
    fn look(&self, deadline: Instant) -> Result<Option<Instant>, Error> {
        let (mut line, now) = (lock(self.line), Instant::now());
        let turn = line.turn(&self.ticket, now);
        if turn >= deadline {
            let message =
                "too many calls of neon's api wait for their turn under its limit per minute";
            let err = Error::new(ErrorKind::RateLimited, message);
            return Err(err.with_retry_after(turn - now));
        }
        if turn > now {
            return Ok(Some(line.wait(&self.ticket, turn, now)));
        }
        line.pass(&self.ticket, now);
        Ok(None)
    }
}

impl Drop for QueueSlot<'_> {
    fn drop(&mut self) {
        lock(self.line).leave(&self.ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::error::Stage;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);
    const FULL: Rate = Rate {
        per_minute: PER_MINUTE,
        per_second: PER_SECOND,
    };

    /// Returns the limiter of a client whose key no other test uses.
    fn limiter(key: &str, rate: Rate) -> Arc<Limiter> {
        let base = Url::parse("https://limiter.test").unwrap();
        Arc::new(Limiter::new(&base, &Secret::from(key), rate))
    }

    fn patient() -> Progress {
        Progress::new(Stage::Provision, 600 * SECOND)
    }

    /// Sends `count` requests at once, and returns the time that each waited for its turn, in the order of sending.
    async fn passes(
        limiter: &Arc<Limiter>,
        routes: &[&'static str],
        count: usize,
    ) -> Vec<Duration> {
        let (start, progress) = (Instant::now(), patient());
        let callers = (0..count).map(|n| {
            let (limiter, route, progress) = (limiter, routes[n % routes.len()], &progress);
            async move {
                limiter
                    .pass(route, Class::Interactive, progress)
                    .await
                    .unwrap();
                start.elapsed()
            }
        });
        futures_util::future::join_all(callers).await
    }

    /// Returns the largest number of `times` in any `window`.
    fn most_within(times: &[Duration], window: Duration) -> usize {
        let mut times = times.to_vec();
        times.sort();
        let from = |place: usize| {
            let end = times[place] + window;
            times[place..]
                .iter()
                .take_while(|time| **time < end)
                .count()
        };
        (0..times.len()).map(from).max().unwrap_or_default()
    }

    #[tokio::test(start_paused = true)]
    async fn no_minute_has_more_than_neon_takes_and_none_much_less() {
        let times = passes(&limiter("minute", FULL), &["a", "b", "c"], 1500).await;
        let most = most_within(&times, MINUTE);
        assert!((690..=700).contains(&most), "{most}");
        let last = times.iter().max().unwrap();
        assert!(
            *last < 135 * SECOND,
            "1500 take little more than two minutes: {last:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn no_second_has_more_of_a_route_than_neon_takes_and_no_route_waits_for_another() {
        let one = passes(&limiter("second", FULL), &["a"], 100).await;
        assert!((28..=40).contains(&most_within(&one, SECOND)));

        // An account with a higher limit per minute.
        let raised = Rate {
            per_minute: 100_000,
            ..FULL
        };
        let times = passes(&limiter("raised", raised), &["a", "a", "a", "b"], 400).await;
        let of = |wanted: bool| -> Vec<Duration> {
            let each = times.iter().enumerate();
            each.filter(|(n, _)| (n % 4 == 3) == wanted)
                .map(|(_, time)| *time)
                .collect()
        };
        let (a, b) = (of(false), of(true));
        for route in [&a, &b] {
            assert_eq!(most_within(route, SECOND), 40);
        }
        assert!(
            *b.iter().max().unwrap() < 3 * SECOND,
            "b does not stand behind a"
        );
        assert!(*a.iter().max().unwrap() < 8 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_is_a_part_of_both_limits() {
        let quarter = FULL.share(0.25);
        assert_eq!((quarter.per_minute, quarter.per_second), (175, 10));
        let times = passes(&limiter("share", quarter), &["a"], 400).await;
        let most = most_within(&times, MINUTE);
        assert!((170..=175).contains(&most), "{most}");
        assert!(most_within(&times, SECOND) <= 10);
        let least = FULL.share(1e-9);
        assert_eq!((least.per_minute, least.per_second), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn clients_of_one_key_share_a_line_and_the_smaller_rate_holds() {
        let (large, small) = (limiter("shared", FULL), limiter("shared", FULL.share(0.1)));
        let both = [passes(&large, &["a"], 30), passes(&small, &["b"], 30)];
        let times = futures_util::future::join_all(both).await.concat();
        assert!(
            *times.iter().max().unwrap() > 45 * SECOND,
            "60 at 70 a minute"
        );
        drop(small);
        let alone = passes(&large, &["a"], 30).await;
        assert!(*alone.iter().max().unwrap() < 10 * SECOND);

        // A client that is built again continues in the same line.
        drop(large);
        let again = passes(&limiter("shared", FULL), &["a"], 29).await;
        assert!(*again.iter().max().unwrap() > SECOND, "{again:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_request_lets_interactive_ones_pass_and_then_has_its_turn() {
        let limiter = limiter("background", FULL);
        passes(&limiter, &["a"], 28).await; // the burst
        let (start, progress) = (Instant::now(), patient());
        let background = limiter.pass("a", Class::Background, &progress);
        let background = async {
            background.await.unwrap();
            start.elapsed()
        };
        let later = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            passes(&limiter, &["a", "b"], 30).await;
            start.elapsed()
        };
        let (background, interactive) = tokio::join!(background, later);
        assert!(background > interactive, "{background:?} {interactive:?}");
        assert!(background < interactive + Duration::from_millis(200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wave_of_calls_for_recovery_delays_an_interactive_one_by_one_call() {
        let limiter = limiter("wave", FULL);
        let progress = patient();
        let wave = (0..1000).map(|_| limiter.pass("a", Class::Recovery, &progress));
        let wave = async { futures_util::future::try_join_all(wave).await.unwrap() };
        let others = async {
            for _ in 0..20 {
                tokio::time::sleep(SECOND).await;
                let took = passes(&limiter, &["b"], 1).await;
                assert!(took[0] <= FULL.interval(), "{took:?}");
            }
            let start = Instant::now();
            limiter
                .pass("b", Class::Background, &progress)
                .await
                .unwrap();
            start.elapsed()
        };
        let (_, background) = tokio::join!(wave, others);
        assert!(background > 50 * SECOND, "{background:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_leaves_no_gap_and_stops_nobody() {
        let limiter = limiter(
            "dropped",
            Rate {
                per_minute: 60,
                ..FULL
            },
        );
        passes(&limiter, &["a"], 2).await; // the burst
        let (start, progress) = (Instant::now(), patient());
        let mut impatient: Vec<_> = (0..20)
            .map(|_| Box::pin(limiter.pass("a", Class::Interactive, &progress)))
            .collect();
        for each in &mut impatient {
            assert!(futures_util::poll!(each).is_pending());
        }
        let mut last = Box::pin(limiter.pass("a", Class::Background, &progress));
        assert!(futures_util::poll!(&mut last).is_pending());
        tokio::time::sleep(Duration::from_millis(100)).await;
        drop(impatient);
        last.await.unwrap();
        assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_after_the_deadline_is_refused_at_once_and_says_when() {
        let limiter = limiter(
            "refused",
            Rate {
                per_minute: 60,
                ..FULL
            },
        );
        passes(&limiter, &["a"], 30).await;
        let hurried = Progress::new(Stage::Provision, Duration::from_millis(100));
        let start = Instant::now();
        let err = limiter
            .pass("b", Class::Interactive, &hurried)
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::RateLimited);
        assert!(err.retry_after().unwrap() > Duration::from_millis(500));
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_background_request_that_is_passed_by_too_many_is_refused_by_its_deadline() {
        let limiter = limiter(
            "overtaken",
            Rate {
                per_minute: 60,
                ..FULL
            },
        );
        passes(&limiter, &["a"], 2).await;
        let (start, progress) = (Instant::now(), Progress::new(Stage::Provision, 5 * SECOND));
        let background = async {
            let refused = limiter.pass("a", Class::Background, &progress).await;
            (refused, start.elapsed())
        };
        let ((refused, after), _) = tokio::join!(background, passes(&limiter, &["a"], 20));
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::RateLimited);
        assert!(after < 5 * SECOND, "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_becomes_the_next_by_time_alone_is_told() {
        let limiter = limiter("by time", FULL);
        limiter.hold("a", SECOND);
        limiter.hold("b", 2 * SECOND);
        let a = passes(&limiter, &["a"], 1);
        let b = passes(&limiter, &["b"], 1);
        let longer = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            limiter.hold("a", 10 * SECOND);
        };
        let (a, b, ()) = tokio::join!(a, b, longer);
        assert_eq!(b, [2 * SECOND]);
        assert_eq!(a, [Duration::from_millis(10_100)]);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_forgotten_when_others_come_and_go() {
        let limiter = limiter("come and go", FULL);
        let (start, progress) = (Instant::now(), patient());
        let requests = (0..400_u32).map(|n| {
            let (limiter, progress) = (&limiter, &progress);
            let route = ["a", "b", "c"][n as usize % 3];
            let class = if n % 5 == 0 {
                Class::Background
            } else {
                Class::Interactive
            };
            let millis =
                move |most: u32, factor: u32| Duration::from_millis((n * factor % most).into());
            async move {
                tokio::time::sleep(millis(20_000, 7919)).await;
                let pass = limiter.pass(route, class, progress);
                if n % 2 == 0 {
                    let _ = tokio::time::timeout(millis(3000, 104_729), pass).await;
                } else {
                    pass.await.unwrap();
                }
            }
        });
        futures_util::future::join_all(requests).await;
        assert!(start.elapsed() < 40 * SECOND, "{:?}", start.elapsed());
    }

    const ONE_A_SECOND: Rate = Rate {
        per_minute: 60,
        per_second: PER_SECOND,
    };

    #[tokio::test(start_paused = true)]
    async fn whoever_is_not_polled_stops_nobody_and_passes_when_it_is() {
        let limiter = limiter("not polled", ONE_A_SECOND);
        passes(&limiter, &["a"], 2).await; // the burst
        let progress = patient();
        let mut idle: Vec<_> = (0..20)
            .map(|_| Box::pin(limiter.pass("a", Class::Interactive, &progress)))
            .collect();
        for each in &mut idle {
            assert!(futures_util::poll!(each).is_pending());
        }
        let others = passes(&limiter, &["a", "b"], 4).await;
        let last = others.iter().max().unwrap();
        assert!(*last < 6 * SECOND, "the grace is given once: {others:?}");
        let start = Instant::now();
        idle.swap_remove(0).await.unwrap();
        assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn many_on_a_held_route_stop_no_other_route_and_no_other_class() {
        let limiter = limiter("held many", ONE_A_SECOND);
        limiter.hold("a", 30 * SECOND);
        let (start, progress) = (Instant::now(), patient());
        let held: Vec<_> = (0..50)
            .map(|_| Box::pin(limiter.pass("a", Class::Interactive, &progress)))
            .collect();
        let mut held = futures_util::future::join_all(held);
        assert!(futures_util::poll!(&mut held).is_pending());
        let hurried = Progress::new(Stage::Provision, 5 * SECOND);
        for class in [Class::Interactive, Class::Background] {
            limiter.pass("b", class, &hurried).await.unwrap();
        }
        assert!(start.elapsed() < 2 * SECOND, "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slower_client_that_left_holds_nobody_at_its_pace() {
        let large = limiter("left", FULL);
        let small = limiter("left", FULL.share(1e-9));
        passes(&small, &["a"], 1).await;
        let waiting = passes(&large, &["a"], 2);
        let leave = async {
            tokio::time::sleep(SECOND).await;
            drop(small);
        };
        let (times, ()) = tokio::join!(waiting, leave);
        assert!(times.iter().all(|time| *time < 2 * SECOND), "{times:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_slash_at_the_end_of_the_address_makes_no_other_line() {
        let line = |base: &str| {
            let base = Url::parse(base).unwrap();
            Limiter::new(&base, &Secret::from("slash"), FULL)
        };
        let (with, without) = (
            line("https://limiter.test/v2/"),
            line("https://limiter.test/v2"),
        );
        assert!(Arc::ptr_eq(&with.line, &without.line));
    }

    #[tokio::test(start_paused = true)]
    async fn a_route_that_neon_wants_less_of_is_held_and_no_other() {
        let limiter = limiter("held", FULL);
        limiter.hold("a", 10 * SECOND);
        assert_eq!(passes(&limiter, &["b"], 1).await, [Duration::ZERO]);
        assert_eq!(passes(&limiter, &["a"], 1).await, [10 * SECOND]);
        limiter.hold("a", 10 * SECOND);
        let hurried = Progress::new(Stage::Provision, SECOND);
        let refused = limiter
            .pass("a", Class::Interactive, &hurried)
            .await
            .unwrap_err();
        assert_eq!(refused.retry_after(), Some(10 * SECOND));
    }
}
