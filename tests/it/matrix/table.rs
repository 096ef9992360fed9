//! The events that can happen to a tenant's database, and what each call makes of them.

use std::time::Duration;

use tenantry::{
    ErrorKind, ExhaustedQuota as Quota, Stage,
    emulator::{Fault, Reason, Stop},
};

/// The ways to ask a database something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verb {
    /// `get`, and a query on what it gave.
    Get,
    Read,
    Transaction,
}

impl Verb {
    pub(super) const ALL: [Self; 3] = [Self::Get, Self::Read, Self::Transaction];

    /// The tenant that is asked in this way.
    pub(super) const fn tenant(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Read => "read",
            Self::Transaction => "transaction",
        }
    }
}

/// The situation in which an event happens.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum State {
    /// The compute is suspended, and the router has seen its sockets close.
    Asleep,
    /// The compute is up, and the router has a connection that lies idle.
    Idle,
    /// The caller's query runs; in a transaction, after it has written.
    MidQuery,
    /// The same, and the compute is suspended as well, so that the call has to wake it again.
    Suspended,
}

impl State {
    pub(super) const ALL: [Self; 4] = [Self::Asleep, Self::Idle, Self::MidQuery, Self::Suspended];

    pub(super) const fn is_mid_query(self) -> bool {
        matches!(self, Self::MidQuery | Self::Suspended)
    }

    /// As the manual calls it.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Asleep => "asleep",
            Self::Idle => "idle",
            Self::MidQuery => "mid-query",
            Self::Suspended => "suspended mid-query",
        }
    }
}

/// The way in which a call ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    /// With the tenant's own row; a transaction is committed.
    Rows,
    /// With the row once the router has heard that the socket is closed; a query before that fails with its own error,
    /// once.
    RowsOnceHeard,
    /// With tokio-postgres's error, from the query.
    OwnError,
    /// Not at all, as long as the caller waits.
    NoAnswer,
    /// With our error, of this kind at this stage.
    Fails(ErrorKind, Stage),
}

impl Outcome {
    /// Returns whether later calls get the same error as well, until its cause may have changed.
    pub(super) const fn is_refusal(self) -> bool {
        match self {
            Self::Fails(kind, _) => {
                !matches!(kind, ErrorKind::Timeout(_) | ErrorKind::CommitUnknown)
            }
            Self::Rows | Self::RowsOnceHeard | Self::OwnError | Self::NoAnswer => false,
        }
    }
}

/// Something that happens.
#[derive(Debug)]
pub(super) enum Event {
    /// Affects connections that are opened from then on.
    Fault(Fault),
    /// [`Fault::WakeRefused`], so many times or always.
    Refused(Reason, Option<u32>),
    Stop(Stop),
    /// For half a second.
    FreezeBriefly,
    /// Until after the deadline.
    Freeze,
    Crash,
    RestartProxy,
    RotatePassword,
    MoveEndpoint,
}

/// The outcomes of `get` and query, of `read`, and of `transaction`.
pub(super) type Cells = [Outcome; 3];

/// A row of the table: the outcomes when one of these events happens.
pub(super) struct Row {
    pub(super) what: &'static str,
    pub(super) events: &'static [Event],
    /// The deadline of each call.
    pub(super) deadline: Duration,
    pub(super) asleep: Cells,
    pub(super) idle: Cells,
    pub(super) mid_query: Cells,
    /// `None` if it cuts the query by itself.
    pub(super) suspended: Option<Cells>,
}

impl Row {
    pub(super) fn cells(&self, state: State) -> Option<Cells> {
        match state {
            State::Asleep => Some(self.asleep),
            State::Idle => Some(self.idle),
            State::MidQuery => Some(self.mid_query),
            State::Suspended => self.suspended,
        }
    }
}

/// For outcomes that come long before it, also while other tests keep the disk busy.
pub(super) const AMPLE_DEADLINE: Duration = Duration::from_secs(25);
/// For outcomes that come with it.
const SHORT_DEADLINE: Duration = Duration::from_secs(4);
/// For PgBouncer's second try, which comes after 15 s.
const LONG_DEADLINE: Duration = Duration::from_secs(30);

const ROWS: Cells = [Outcome::Rows; 3];
/// The outcomes of a connection that is lost under a query: the query fails, and the other two verbs run again.
const CUT: Cells = [Outcome::OwnError, Outcome::Rows, Outcome::Rows];
/// The outcomes of a connection that died while it lay idle.
const DIED: Cells = [Outcome::RowsOnceHeard, Outcome::Rows, Outcome::Rows];

/// Something that affects new connections: `cell` for calls that must open one.
const fn failing_connects(
    what: &'static str,
    events: &'static [Event],
    deadline: Duration,
    cell: Outcome,
) -> Row {
    Row {
        what,
        events,
        deadline,
        asleep: [cell; 3],
        idle: ROWS,
        mid_query: ROWS,
        suspended: Some([Outcome::OwnError, cell, cell]),
    }
}

/// A refusal: told at once, and remembered.
const fn refusal(what: &'static str, events: &'static [Event], kind: ErrorKind) -> Row {
    failing_connects(
        what,
        events,
        AMPLE_DEADLINE,
        Outcome::Fails(kind, Stage::Wake),
    )
}

/// Something that may pass at any moment, and does not.
const fn lasting_fault(what: &'static str, events: &'static [Event]) -> Row {
    let cell = Outcome::Fails(ErrorKind::Timeout(Stage::Wake), Stage::Wake);
    failing_connects(what, events, SHORT_DEADLINE, cell)
}

/// Something that passes in time.
const fn passing_fault(what: &'static str, events: &'static [Event], deadline: Duration) -> Row {
    failing_connects(what, events, deadline, Outcome::Rows)
}

/// Something that cuts all connections.
const fn connection_loss(what: &'static str, events: &'static [Event]) -> Row {
    Row {
        what,
        events,
        deadline: AMPLE_DEADLINE,
        asleep: ROWS,
        idle: DIED,
        mid_query: CUT,
        suspended: None,
    }
}

/// Each has a test and a deadline of its own.
pub(super) const TABLE: [&[Row]; 8] = [
    QUOTAS,
    REFUSALS,
    BUSY,
    UNREACHABLE,
    PASSING,
    RECOVERY,
    RUNNING,
    FROZEN,
];

pub(super) const QUOTAS: &[Row] = &[
    refusal(
        "the quota of active time is used up (`ActiveTimeQuota`)",
        &[Event::Refused(Reason::ActiveTimeQuota, None)],
        ErrorKind::QuotaExhausted(Quota::ActiveTime),
    ),
    refusal(
        "the quota of compute time is used up (`ComputeTimeQuota`, `BranchComputeTimeQuota`)",
        &[
            Event::Refused(Reason::ComputeTimeQuota, None),
            Event::Refused(Reason::BranchComputeTimeQuota, None),
        ],
        ErrorKind::QuotaExhausted(Quota::ComputeTime),
    ),
    refusal(
        "the quota of written data is used up (`WrittenDataQuota`)",
        &[Event::Refused(Reason::WrittenDataQuota, None)],
        ErrorKind::QuotaExhausted(Quota::WrittenData),
    ),
    refusal(
        "the quota of data transfer is used up (`DataTransferQuota`)",
        &[Event::Refused(Reason::DataTransferQuota, None)],
        ErrorKind::QuotaExhausted(Quota::DataTransfer),
    ),
    refusal(
        "the quota of stored data is used up (`LogicalSizeQuota`)",
        &[Event::Refused(Reason::LogicalSizeQuota, None)],
        ErrorKind::QuotaExhausted(Quota::LogicalSize),
    ),
];

pub(super) const REFUSALS: &[Row] = &[
    refusal(
        "too many computes are awake (`ActiveEndpointsLimit`)",
        &[Event::Refused(Reason::ActiveEndpointsLimit, None)],
        ErrorKind::ActiveComputeLimit,
    ),
    refusal(
        "the control plane gets too many requests (`RateLimitExceeded`)",
        &[Event::Refused(Reason::RateLimitExceeded, None)],
        ErrorKind::RateLimited,
    ),
    refusal(
        "the endpoint is disabled (`EndpointDisabled`)",
        &[Event::Refused(Reason::EndpointDisabled, None)],
        ErrorKind::Disabled,
    ),
    refusal(
        "the endpoint does not exist any more (`EndpointNotFound`, `NotFound`)",
        &[
            Event::Refused(Reason::EndpointNotFound, None),
            Event::Refused(Reason::NotFound, None),
        ],
        ErrorKind::EndpointNotFound,
    ),
    refusal(
        "the endpoint is unavailable, and Neon gives no reason (`Unavailable`)",
        &[Event::Refused(Reason::Unavailable, None)],
        ErrorKind::Locked,
    ),
    refusal(
        "the client's address is not allowed to connect (`AddressNotAllowed`)",
        &[Event::Fault(Fault::AddressNotAllowed)],
        ErrorKind::Refused,
    ),
];

pub(super) const BUSY: &[Row] = &[
    lasting_fault(
        "the control plane is busy until the deadline (`RunningOperations`, `ConcurrencyLimitReached`, `LockAlreadyTaken`, `EndpointIdle`, `ProjectUnderMaintenance`)",
        &[
            Event::Refused(Reason::RunningOperations, None),
            Event::Refused(Reason::ConcurrencyLimitReached, None),
            Event::Refused(Reason::LockAlreadyTaken, None),
            Event::Refused(Reason::EndpointIdle, None),
            Event::Refused(Reason::ProjectUnderMaintenance, None),
        ],
    ),
    lasting_fault(
        "the control plane fails, and the proxy repeats the failure (`Failed`)",
        &[Event::Refused(Reason::Failed, None)],
    ),
    lasting_fault(
        "the control plane cannot be reached (`ControlPlaneDown`)",
        &[Event::Fault(Fault::ControlPlaneDown)],
    ),
    lasting_fault(
        "too many connections or wakes at once, until the deadline (`TooManyConnections`, `TooManyWakes`, `NoPermit`)",
        &[
            Event::Fault(Fault::TooManyConnections { times: u32::MAX }),
            Event::Fault(Fault::TooManyWakes { times: u32::MAX }),
            Event::Fault(Fault::NoPermit { times: u32::MAX }),
        ],
    ),
];

pub(super) const UNREACHABLE: &[Row] = &[lasting_fault(
    "the compute is running, but cannot be reached (`ComputeRefuses`, `ComputeUnreachable`, `ComputeCloses`, `ComputeSilent`)",
    &[
        Event::Fault(Fault::ComputeRefuses),
        Event::Fault(Fault::ComputeUnreachable),
        Event::Fault(Fault::ComputeCloses),
        Event::Fault(Fault::ComputeSilent),
    ],
)];

pub(super) const PASSING: &[Row] = &[
    passing_fault(
        "the control plane is busy for half a second (`RunningOperations`)",
        &[Event::Refused(Reason::RunningOperations, Some(4))],
        AMPLE_DEADLINE,
    ),
    passing_fault(
        "too many connections or wakes at once, reported once (`TooManyConnections`, `TooManyWakes`, `NoPermit`)",
        &[
            Event::Fault(Fault::TooManyConnections { times: 1 }),
            Event::Fault(Fault::TooManyWakes { times: 1 }),
            Event::Fault(Fault::NoPermit { times: 1 }),
        ],
        AMPLE_DEADLINE,
    ),
];

pub(super) const RECOVERY: &[Row] = &[passing_fault(
    "the compute recovers for one second at its next start (`ComputeRecovers`)",
    &[Event::Fault(Fault::ComputeRecovers { milliseconds: 1000 })],
    LONG_DEADLINE,
)];

const UNKNOWN: Outcome = Outcome::Fails(ErrorKind::CommitUnknown, Stage::Commit);
const OUT_OF_TIME: Outcome = Outcome::Fails(ErrorKind::Timeout(Stage::Query), Stage::Query);

pub(super) const RUNNING: &[Row] = &[
    Row {
        what: "COMMIT succeeds, but all processes are killed before its answer (`CommitAnswerLost`)",
        events: &[Event::Fault(Fault::CommitAnswerLost)],
        deadline: AMPLE_DEADLINE,
        asleep: [Outcome::Rows, Outcome::Rows, UNKNOWN],
        idle: [Outcome::Rows, Outcome::Rows, UNKNOWN],
        mid_query: [Outcome::Rows, Outcome::Rows, UNKNOWN],
        suspended: Some([Outcome::OwnError, Outcome::Rows, UNKNOWN]),
    },
    connection_loss(
        "the compute is stopped (`Neon`, `Fast`, `Immediate`, `Kill`)",
        &[
            Event::Stop(Stop::Neon),
            Event::Stop(Stop::Fast),
            Event::Stop(Stop::Immediate),
            Event::Stop(Stop::Kill),
        ],
    ),
    connection_loss("the compute crashes", &[Event::Crash]),
    connection_loss("the proxy is restarted", &[Event::RestartProxy]),
    connection_loss("the password is rotated", &[Event::RotatePassword]),
    connection_loss("the endpoint is moved", &[Event::MoveEndpoint]),
    Row {
        what: "the compute is frozen for half a second",
        events: &[Event::FreezeBriefly],
        deadline: AMPLE_DEADLINE,
        asleep: ROWS,
        idle: ROWS,
        mid_query: ROWS,
        suspended: None,
    },
];

pub(super) const FROZEN: &[Row] = &[Row {
    what: "the compute is frozen until after the deadline",
    events: &[Event::Freeze],
    deadline: SHORT_DEADLINE,
    asleep: [Outcome::Fails(ErrorKind::Timeout(Stage::Wake), Stage::Wake); 3],
    idle: [Outcome::NoAnswer, OUT_OF_TIME, OUT_OF_TIME],
    mid_query: [Outcome::NoAnswer, OUT_OF_TIME, OUT_OF_TIME],
    suspended: None,
}];
