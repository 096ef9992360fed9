//! Races the addresses of a host as in RFC 8305 (Happy Eyeballs): the next address is tried when the last has failed or
//! has been silent for a short time, and the first to answer wins.
//!
//! Only sockets race. The login is sent on the socket that has won.

use std::{future::Future, io, net::SocketAddr, time::Duration};

use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::time::{sleep, timeout};

/// Wait for one address before the next is tried in parallel: RFC 8305's connection attempt delay.
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// Longest wait for one address to accept the socket. Neon's proxies are always up; a lost packet is resent after 1 s.
const TCP_TIMEOUT: Duration = Duration::from_secs(3);
/// Most addresses of one host that are tried at a time.
const MOST_AT_ONCE: usize = 4;

/// Returns `addresses` in the order in which to try them: those that are not `is_useless` first, families alternating.
pub(super) fn order(
    addresses: Vec<SocketAddr>,
    is_useless: impl Fn(&SocketAddr) -> bool,
) -> Vec<SocketAddr> {
    let (last, first) = addresses.into_iter().partition(is_useless);
    let mut ordered = by_turns(first);
    ordered.extend(by_turns(last));
    ordered
}

/// Returns `addresses` without duplicates, with the two families alternating.
fn by_turns(addresses: Vec<SocketAddr>) -> Vec<SocketAddr> {
    let mut unique = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !unique.contains(&address) {
            unique.push(address);
        }
    }
    let is_ipv4 = unique.first().is_some_and(SocketAddr::is_ipv4);
    let (same, other): (Vec<_>, Vec<_>) =
        unique.into_iter().partition(|it| it.is_ipv4() == is_ipv4);
    let (mut same, mut other) = (same.into_iter(), other.into_iter());
    let turns = std::iter::from_fn(|| match (same.next(), other.next()) {
        (None, None) => None,
        turn => Some(turn),
    });
    turns
        .flat_map(|(one, two)| one.into_iter().chain(two))
        .collect()
}

/// Connects to the first of `addresses` that answers, and returns its index with the connection.
///
/// # Errors
/// The error of the address that failed last, if all have failed.
///
/// # Cancel safety
/// Dropping the future closes every socket.
pub(super) async fn race<T, Fut>(
    addresses: &[SocketAddr],
    connect: impl Fn(SocketAddr) -> Fut,
) -> io::Result<(usize, T)>
where
    Fut: Future<Output = io::Result<T>>,
{
    let mut untried = addresses.iter().copied().enumerate();
    let mut attempts = FuturesUnordered::new();
    let mut failure = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    loop {
        if attempts.len() < MOST_AT_ONCE
            && let Some((number, address)) = untried.next()
        {
            let connecting = connect_within_limit(address, connect(address));
            attempts.push(async move { (number, connecting.await) });
        }
        let more = attempts.len() < MOST_AT_ONCE && untried.len() > 0;
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some((number, Ok(socket))) => return Ok((number, socket)),
                Some((_, Err(err))) => failure = err,
                None => return Err(failure),
            },
            () = sleep(ATTEMPT_DELAY), if more => {}
        }
    }
}

/// Waits until `connecting` to `address` has ended, for [`TCP_TIMEOUT`] at most.
async fn connect_within_limit<T>(
    address: SocketAddr,
    connecting: impl Future<Output = io::Result<T>>,
) -> io::Result<T> {
    match timeout(TCP_TIMEOUT, connecting).await {
        Ok(Ok(socket)) => Ok(socket),
        Ok(Err(err)) => Err(io::Error::new(err.kind(), format!("{address}: {err}"))),
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("{address} accepted no connection within {TCP_TIMEOUT:?}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, sync::Mutex};

    use tokio::time::Instant;

    use super::*;

    /// The answer of an address.
    #[derive(Clone, Copy)]
    enum Answer {
        After(Duration),
        Refused,
        Never,
    }
    use Answer::{After, Never, Refused};

    fn address(number: usize) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, u8::try_from(number).unwrap()], 5432))
    }

    /// A running attempt at an address. Its drop logs the end.
    struct Tried<'a>(&'a Mutex<Log>);

    #[derive(Default)]
    struct Log {
        began: Vec<u128>,
        open: usize,
        most_open: usize,
    }

    impl Drop for Tried<'_> {
        fn drop(&mut self) {
            self.0.lock().unwrap().open -= 1;
        }
    }

    /// Races addresses with these answers. Returns the winner's index or the error, the milliseconds that it took, and
    /// the log of attempts.
    async fn raced(answers: &[Answer]) -> (Result<usize, io::Error>, u128, Log) {
        let (log, start) = (Mutex::new(Log::default()), Instant::now());
        let all: Vec<_> = (0..answers.len()).map(address).collect();
        let number = |at: SocketAddr| (0..answers.len()).find(|it| address(*it) == at).unwrap();
        let connect = |at| {
            let mut now = log.lock().unwrap();
            now.began.push(start.elapsed().as_millis());
            now.open += 1;
            now.most_open = now.most_open.max(now.open);
            let tried = Tried(&log);
            let answer = answers[number(at)];
            async move {
                let _tried = tried;
                match answer {
                    After(time) => {
                        sleep(time).await;
                        Ok(())
                    }
                    Refused => Err(io::ErrorKind::ConnectionRefused.into()),
                    Never => pending().await,
                }
            }
        };
        let ended = race(&all, connect).await.map(|(number, ())| number);
        let took = start.elapsed().as_millis();
        (ended, took, log.into_inner().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_overtaken_after_a_quarter_of_a_second_and_a_refusal_at_once() {
        let soon = After(Duration::from_millis(30));
        let cases: [(&[Answer], usize, u128, &[u128]); 5] = [
            (&[soon, soon], 0, 30, &[0]),
            (&[Never, soon], 1, 280, &[0, 250]),
            (&[Refused, soon], 1, 30, &[0, 0]),
            (&[Never, Never, Never, soon], 3, 780, &[0, 250, 500, 750]),
            (&[Never, Refused, soon], 2, 280, &[0, 250, 250]),
        ];
        for (answers, winner, took, began) in cases {
            let (won, at, log) = raced(answers).await;
            assert_eq!((won.unwrap(), at, &log.began[..]), (winner, took, began));
            assert_eq!(log.open, 0, "the others are closed");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_first_address_still_wins_if_it_answers_first() {
        let (slow, slower) = (Duration::from_millis(300), Duration::from_secs(2));
        let (won, took, _) = raced(&[After(slow), After(slower)]).await;
        assert_eq!((won.unwrap(), took), (0, 300));
    }

    #[tokio::test(start_paused = true)]
    async fn few_addresses_are_tried_at_a_time_and_each_for_three_seconds() {
        let (ended, took, log) = raced(&[Never; 9]).await;
        let err = ended.unwrap_err();
        assert_eq!(err.kind(), io::ErrorKind::TimedOut);
        assert!(err.to_string().contains("10.0.0.8"), "{err}");
        assert_eq!((log.began.len(), log.most_open), (9, MOST_AT_ONCE));
        assert_eq!(took, 9_000);
        let (ended, _, _) = raced(&[]).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn families_take_turns_and_addresses_that_were_of_no_use_come_last() {
        let of = |names: &[&str]| -> Vec<SocketAddr> {
            names.iter().map(|it| it.parse().unwrap()).collect()
        };
        let all = of(&[
            "[::1]:1",
            "[::2]:1",
            "[::1]:1",
            "1.1.1.1:1",
            "[::3]:1",
            "1.1.1.2:1",
        ]);
        let plain = of(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "1.1.1.2:1", "[::3]:1"]);
        assert_eq!(order(all.clone(), |_| false), plain);
        assert_eq!(
            order(all.clone(), |_| true),
            plain,
            "they are all there are"
        );
        let dead = of(&["[::1]:1", "1.1.1.1:1"]);
        let rest = of(&["[::2]:1", "1.1.1.2:1", "[::3]:1", "[::1]:1", "1.1.1.1:1"]);
        assert_eq!(order(all, |it| dead.contains(it)), rest);
        assert_eq!(order(Vec::new(), |_| false), []);
    }
}
