//! Random steps of a simulation.

use std::time::Duration;

/// Namespaces, and routers of each.
pub(super) const NAMESPACES: [&str; 2] = ["staging", "production"];
pub(super) const REPLICAS: usize = 2;

/// A reproducible random number generator: `SplitMix64`.
#[derive(Clone, Debug)]
pub(super) struct Rng(u64);

impl Rng {
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
pub(super) struct TenantKey {
    pub(super) namespace: usize,
    pub(super) tenant: usize,
}

/// A tenant at one of the routers of its namespace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Target {
    pub(super) key: TenantKey,
    pub(super) replica: usize,
}

/// The way in which a caller asks for the owner of its database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum CallKind {
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

/// The condition of all databases.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Conditions {
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

/// The work of a process on a tenant for which it needs no connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Job {
    Delete,
    Undelete,
    /// Gives the tenant another database in place of a deleted one.
    Recreate,
}

/// A fault of the logins to one database.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum LoginFault {
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
    /// A caller asks, holds the connection, asks again, and returns it; or leaves before that.
    Ask {
        target: Target,
        kind: CallKind,
        holds: Duration,
        leaves_after: Option<Duration>,
    },
    /// A caller takes two connections and returns each in place of the other.
    SwapConnections(Target, Target),
    Suspend(TenantKey),
    SuspendAll,
    /// The host changes.
    Move(TenantKey),
    /// Two tenants get the host of the other.
    SwapHosts(TenantKey, TenantKey),
    /// The tenant lives in another project from now on, and the old one is still there.
    Copy(TenantKey),
    /// The password changes.
    Rotate(TenantKey),
    Evict(Target),
    /// The number of connections changes.
    Limit(TenantKey, Option<usize>),
    Job(Target, Job),
    /// A process of its own begins the job, and is killed after this long.
    KillDuring(TenantKey, Job, Duration),
    /// Another process brings the record so many states further, at each fork the other way if it `forks`, and keeps
    /// the lease for this long.
    AdvanceState {
        key: TenantKey,
        forks: bool,
        states: usize,
        keeps: Duration,
    },
    /// Logins to one database have trouble for this long.
    LoginFault(TenantKey, LoginFault, Duration),
    Warm(Target),
    Hint(Target),
    /// A process ends and another begins.
    Restart(usize, usize),
    Conditions(Conditions),
    /// Nothing happens for a while.
    Wait(Duration),
}

/// So many steps by chance, with so many tenants in each namespace.
pub(super) fn steps(seed: u64, count: usize, tenants: usize) -> Vec<Step> {
    let mut rng = Rng::new(seed);
    let mut focus = random_target(&mut rng, tenants).key;
    let step = |_| {
        // Much of what happens concerns one tenant for a while.
        if rng.one_in(40) {
            focus = random_target(&mut rng, tenants).key;
        }
        let mut target = random_target(&mut rng, tenants);
        if rng.one_in(3) {
            target.key = focus;
        }
        step(&mut rng, target, tenants)
    };
    (0..count).map(step).collect()
}

fn step(rng: &mut Rng, target: Target, tenants: usize) -> Step {
    let key = target.key;
    match rng.below(100) {
        0..56 => Step::Ask {
            target,
            kind: random_call_kind(rng),
            holds: rng.time(Duration::from_secs(60)),
            leaves_after: rng.one_in(4).then(|| rng.time(Duration::from_secs(2))),
        },
        56..58 => Step::SwapConnections(target, self::random_target(rng, tenants)),
        58..60 => Step::Suspend(key),
        60 => Step::SuspendAll,
        61..63 => Step::Move(key),
        63..65 => Step::SwapHosts(key, self::random_target(rng, tenants).key),
        65..68 => Step::Copy(key),
        68..70 => Step::Rotate(key),
        70..73 => Step::Evict(target),
        73 => Step::Limit(key, [None, Some(1), Some(2), Some(5)][rng.below(4)]),
        74..79 => Step::Job(target, random_job(rng)),
        79 => Step::KillDuring(key, random_job(rng), rng.time(Duration::from_secs(1))),
        80..83 => Step::AdvanceState {
            key,
            forks: rng.one_in(3),
            states: 1 + rng.below(6),
            keeps: if rng.one_in(4) {
                rng.time(Duration::from_secs(60))
            } else {
                Duration::ZERO
            },
        },
        83..87 => Step::LoginFault(
            key,
            random_login_fault(rng),
            rng.time(Duration::from_secs(60)),
        ),
        87 => Step::Warm(target),
        88 => Step::Hint(target),
        89 if rng.one_in(5) => Step::Restart(key.namespace, target.replica),
        89..94 => Step::Conditions(random_conditions(rng)),
        _ => Step::Wait(rng.time(Duration::from_secs(120))),
    }
}

fn random_job(rng: &mut Rng) -> Job {
    match rng.below(5) {
        0 => Job::Delete,
        1 => Job::Undelete,
        _ => Job::Recreate,
    }
}

fn random_login_fault(rng: &mut Rng) -> LoginFault {
    match rng.below(8) {
        0..3 => LoginFault::Failing,
        3 => LoginFault::Password,
        4 => LoginFault::Gone,
        5 => LoginFault::Stuck,
        _ => LoginFault::Slow(rng.time(Duration::from_secs(20))),
    }
}

fn random_target(rng: &mut Rng, tenants: usize) -> Target {
    // A few are asked for more often than all others.
    let tenant = rng.below(tenants);
    let tenant = rng.below(tenant + 1);
    let namespace = rng.below(NAMESPACES.len());
    Target {
        key: TenantKey { namespace, tenant },
        replica: rng.below(REPLICAS),
    }
}

fn random_call_kind(rng: &mut Rng) -> CallKind {
    match rng.below(10) {
        0..4 => CallKind::Get,
        4 => CallKind::Read,
        5 => CallKind::Transaction,
        6 => CallKind::Direct,
        7 => CallKind::Cancelled,
        8 => CallKind::Abandoned,
        _ => CallKind::Unfinished,
    }
}

fn random_conditions(rng: &mut Rng) -> Conditions {
    match rng.below(20) {
        0 => Conditions::SlowLogins(rng.time(Duration::from_secs(10))),
        1 => Conditions::StuckLogins,
        2 => Conditions::FailingLogins,
        3 => Conditions::Unreachable,
        4 => Conditions::CutQueries,
        5..7 => Conditions::SlowQueries(rng.time(Duration::from_secs(2))),
        _ => Conditions::Fine,
    }
}
