//! What may happen, one thing after the other, by chance.

use std::time::Duration;

/// Namespaces, and routers of each.
pub(super) const NAMESPACES: [&str; 2] = ["staging", "production"];
pub(super) const REPLICAS: usize = 2;

/// Chance that can be had again: `SplitMix64`.
#[derive(Clone, Debug)]
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }

    fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    /// Mostly short, and sometimes up to `longest`.
    fn time(&mut self, longest: Duration) -> Duration {
        let part = [4096, 512, 64, 8, 1][self.below(5)];
        longest / part * u32::try_from(self.below(1000)).unwrap() / 1000
    }
}

/// A tenant of a namespace.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Who {
    pub(super) namespace: usize,
    pub(super) tenant: usize,
}

/// Somebody asks for a tenant at one of the routers of its namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct At {
    pub(super) who: Who,
    pub(super) replica: usize,
}

/// In which way somebody asks whose database it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    Get,
    Read,
    Transaction,
    /// With a connection past the pooler.
    Direct,
    /// With a query that is cancelled under way.
    Cancelled,
    /// With a query that is dropped under way, and the connection after it.
    Abandoned,
    /// In a transaction that is begun and never ended.
    Unfinished,
}

/// How the databases are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Weather {
    Fine,
    /// Logins take this long.
    SlowLogins(Duration),
    /// Nobody is let in, nor told so.
    StuckLogins,
    /// Logins fail as when a compute cannot be started.
    FailingLogins,
    /// Hosts cannot be reached.
    Unreachable,
    /// Connections break off under queries.
    CutQueries,
    /// Queries take this long.
    SlowQueries(Duration),
}

/// What a process does to a tenant that has no connection to do with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Job {
    Delete,
    Undelete,
    /// Gives the tenant another database in place of a deleted one.
    Anew,
}

/// What becomes of logins to one database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Trouble {
    /// They fail as when its compute cannot be started.
    Failing,
    /// They fail as if the password were wrong.
    Password,
    /// They fail as if there were no such endpoint.
    Gone,
    /// They get no answer.
    Stuck,
    /// They take this long.
    Slow(Duration),
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Step {
    /// Somebody asks, holds the connection, asks again, and gives it back; or leaves before.
    Ask {
        at: At,
        way: Way,
        holds: Duration,
        leaves_after: Option<Duration>,
    },
    /// Somebody has two connections, and gives each back as the other.
    Swap(At, At),
    Suspend(Who),
    SuspendAll,
    /// The host changes.
    Move(Who),
    /// Two tenants get the host of the other.
    Trade(Who, Who),
    /// The tenant lives in another project from now on, and the old one is still there.
    Copy(Who),
    /// The password changes.
    Rotate(Who),
    Evict(At),
    /// The number of connections changes.
    Limit(Who, Option<usize>),
    Job(At, Job),
    /// A process of its own begins the job, and is killed after this long.
    Killed(Who, Job, Duration),
    /// Another process brings the record so many states further, at each fork the other way if it `forks`, and keeps the
    /// lease for this long.
    Further {
        who: Who,
        forks: bool,
        states: usize,
        keeps: Duration,
    },
    /// Logins to one database have trouble for this long.
    Trouble(Who, Trouble, Duration),
    Warm(At),
    Hint(At),
    /// A process ends and another begins.
    Restart(usize, usize),
    Weather(Weather),
    /// Nothing happens for a while.
    Pass(Duration),
}

/// So many steps by chance, with so many tenants in each namespace.
pub(super) fn steps(seed: u64, count: usize, tenants: usize) -> Vec<Step> {
    let mut chance = Chance::new(seed);
    let mut focus = at(&mut chance, tenants).who;
    let step = |_| {
        // Much of what happens concerns one tenant for a while.
        if chance.one_in(40) {
            focus = at(&mut chance, tenants).who;
        }
        let mut at = at(&mut chance, tenants);
        if chance.one_in(3) {
            at.who = focus;
        }
        step(&mut chance, at, tenants)
    };
    (0..count).map(step).collect()
}

fn step(chance: &mut Chance, at: At, tenants: usize) -> Step {
    let who = at.who;
    match chance.below(100) {
        0..56 => Step::Ask {
            at,
            way: way(chance),
            holds: chance.time(Duration::from_secs(60)),
            leaves_after: chance
                .one_in(4)
                .then(|| chance.time(Duration::from_secs(2))),
        },
        56..58 => Step::Swap(at, self::at(chance, tenants)),
        58..60 => Step::Suspend(who),
        60 => Step::SuspendAll,
        61..63 => Step::Move(who),
        63..65 => Step::Trade(who, self::at(chance, tenants).who),
        65..68 => Step::Copy(who),
        68..70 => Step::Rotate(who),
        70..73 => Step::Evict(at),
        73 => Step::Limit(who, [None, Some(1), Some(2), Some(5)][chance.below(4)]),
        74..79 => Step::Job(at, job(chance)),
        79 => Step::Killed(who, job(chance), chance.time(Duration::from_secs(1))),
        80..83 => Step::Further {
            who,
            forks: chance.one_in(3),
            states: 1 + chance.below(6),
            keeps: if chance.one_in(4) {
                chance.time(Duration::from_secs(60))
            } else {
                Duration::ZERO
            },
        },
        83..87 => Step::Trouble(who, trouble(chance), chance.time(Duration::from_secs(60))),
        87 => Step::Warm(at),
        88 => Step::Hint(at),
        89 if chance.one_in(5) => Step::Restart(who.namespace, at.replica),
        89..94 => Step::Weather(weather(chance)),
        _ => Step::Pass(chance.time(Duration::from_secs(120))),
    }
}

fn job(chance: &mut Chance) -> Job {
    match chance.below(5) {
        0 => Job::Delete,
        1 => Job::Undelete,
        _ => Job::Anew,
    }
}

fn trouble(chance: &mut Chance) -> Trouble {
    match chance.below(8) {
        0..3 => Trouble::Failing,
        3 => Trouble::Password,
        4 => Trouble::Gone,
        5 => Trouble::Stuck,
        _ => Trouble::Slow(chance.time(Duration::from_secs(20))),
    }
}

fn at(chance: &mut Chance, tenants: usize) -> At {
    // A few are asked for more often than all others.
    let tenant = chance.below(tenants);
    let tenant = chance.below(tenant + 1);
    let namespace = chance.below(NAMESPACES.len());
    At {
        who: Who { namespace, tenant },
        replica: chance.below(REPLICAS),
    }
}

fn way(chance: &mut Chance) -> Way {
    match chance.below(10) {
        0..4 => Way::Get,
        4 => Way::Read,
        5 => Way::Transaction,
        6 => Way::Direct,
        7 => Way::Cancelled,
        8 => Way::Abandoned,
        _ => Way::Unfinished,
    }
}

fn weather(chance: &mut Chance) -> Weather {
    match chance.below(20) {
        0 => Weather::SlowLogins(chance.time(Duration::from_secs(10))),
        1 => Weather::StuckLogins,
        2 => Weather::FailingLogins,
        3 => Weather::Unreachable,
        4 => Weather::CutQueries,
        5..7 => Weather::SlowQueries(chance.time(Duration::from_secs(2))),
        _ => Weather::Fine,
    }
}
