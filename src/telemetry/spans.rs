//! What a call leaves behind for whoever watches: a span, an event for each of its stages, and how long those took.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{Span, field::Empty};

use super::{
    labels::{Path, Reason},
    stats::Stats,
};
use crate::model::{
    error::{Error, Stage},
    tenant::TenantId,
};

/// The span of a call that has to wait. What is too long to be a tenant's id is not written.
pub(crate) fn span(tenant: &str, reason: Reason) -> Span {
    let reason = reason.name();
    let tenant = (tenant.len() <= TenantId::MAX_LEN).then_some(tenant);
    tracing::debug_span!("get", tenant, reason, outcome = Empty, stage = Empty)
}

/// The span of a call that found an idle connection: it begins and ends here, since nothing happens in between.
#[inline]
pub(crate) fn warm(tenant: &str) {
    let (reason, outcome) = (Reason::Request.name(), Path::Warm.name());
    drop(tracing::debug_span!(
        "get",
        tenant,
        reason,
        outcome,
        stage = Empty
    ));
}

/// The span of a call for a connection past the pooler.
pub(crate) fn direct(tenant: &str) -> Span {
    tracing::debug_span!("direct", tenant, outcome = Empty, stage = Empty)
}

/// Writes into its `span` how that call ended.
pub(crate) fn end_direct(span: &Span, err: Option<&Error>) {
    match err {
        None => {
            span.record("outcome", "opened");
        }
        Some(err) => end(span, Err(err)),
    }
}

/// The span of work that belongs to the tenant, and outlives the call that has begun it: a root, that points there.
pub(crate) fn detached(span: Span) -> Span {
    span.follows_from(Span::current());
    span
}

/// Writes into the call's `span` how it ended.
pub(crate) fn end(span: &Span, result: Result<Path, &Error>) {
    match result {
        Ok(path) => {
            span.record("outcome", path.name());
        }
        Err(err) => {
            span.record("outcome", err.kind().code());
            span.record("stage", err.stage().map(Stage::code));
        }
    }
}

/// For how long a call has waited, stage by stage.
pub(crate) struct StageTimer<'a> {
    stats: &'a Stats,
    pub(crate) began: Instant,
    last: Instant,
}

impl<'a> StageTimer<'a> {
    pub(crate) fn new(stats: &'a Stats) -> Self {
        let began = Instant::now();
        Self {
            stats,
            began,
            last: began,
        }
    }

    /// A stage has ended, with `result`, by which `stage_of` or an error itself says which it was.
    pub(crate) fn record<T>(
        &mut self,
        result: Result<&T, &Error>,
        stage_of: impl FnOnce(Result<&T, Option<Stage>>) -> Stage,
    ) {
        let now = Instant::now();
        let elapsed = now.duration_since(self.last);
        self.last = now;
        let stage = stage_of(result.map_err(Error::stage));
        self.stats.meters.stage(stage, result.is_ok(), elapsed);
        let (stage, err) = (stage.code(), result.err());
        tracing::debug!(
            stage,
            ?elapsed,
            code = err.map(|err| err.kind().code()),
            "stage"
        );
    }

    /// From the beginning to the end of the last stage.
    pub(crate) fn waited(&self) -> Duration {
        self.last.duration_since(self.began)
    }
}
