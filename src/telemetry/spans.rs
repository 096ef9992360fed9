//! The span of a call, an event for each of its stages, and the duration of each stage.

use std::time::Duration;

use tracing::{Span, field::Empty, level_filters::LevelFilter};

use super::{
    labels::{Path, Reason},
    stats::Stats,
};
use crate::{
    model::{
        error::{Error, Stage},
        tenant::TenantId,
    },
    sync::clock::{Clock, Moment},
};

/// Returns the span of a call that has to wait. An id that is too long for a tenant is left out.
pub(crate) fn span(tenant: &str, reason: Reason) -> Span {
    if !are_wanted() {
        return Span::none();
    }
    let reason = reason.name();
    let tenant = (tenant.len() <= TenantId::MAX_LEN).then_some(tenant);
    tracing::debug_span!("get", tenant, reason, outcome = Empty, stage = Empty)
}

/// Emits the span of a call that found an idle connection. It begins and ends here, because nothing happens in between.
#[inline]
pub(crate) fn record_idle_hit(tenant: &str) {
    if are_wanted() {
        record_wanted_idle_hit(tenant);
    }
}

/// Returns whether any subscriber may want spans. tracing asks the same first. But with its feature `log`, it then goes
/// on to make a log record of the span, which takes a tenth of a `get` also where nothing logs.
#[inline]
fn are_wanted() -> bool {
    LevelFilter::current() >= LevelFilter::DEBUG
}

#[cold]
fn record_wanted_idle_hit(tenant: &str) {
    let (reason, outcome) = (Reason::Request.name(), Path::Warm.name());
    drop(tracing::debug_span!(
        "get",
        tenant,
        reason,
        outcome,
        stage = Empty
    ));
}

/// Returns the span of a call for a direct connection.
pub(crate) fn direct(tenant: &str) -> Span {
    tracing::debug_span!("direct", tenant, outcome = Empty, stage = Empty)
}

/// Records in `span` the outcome of a call for a direct connection.
pub(crate) fn end_direct(span: &Span, err: Option<&Error>) {
    match err {
        None => {
            span.record("outcome", "opened");
        }
        Some(err) => end(span, Err(err)),
    }
}

/// Makes `span`, which must be a root, follow from the current one. It is for work that belongs to the tenant and
/// outlives the call that has begun it.
pub(crate) fn detached(span: Span) -> Span {
    span.follows_from(Span::current());
    span
}

/// Records the outcome of a call in its `span`.
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

/// A timer of the stages that a call waits for.
pub(crate) struct StageTimer<'a> {
    stats: &'a Stats,
    clock: Clock,
    pub(crate) began: Moment,
    /// End of the last stage, or the beginning of the call.
    pub(crate) last: Moment,
}

impl<'a> StageTimer<'a> {
    pub(crate) fn new(stats: &'a Stats, clock: Clock, began: Moment) -> Self {
        Self {
            stats,
            clock,
            began,
            last: began,
        }
    }

    /// Records the end of a stage. `stage_of` says which stage it was, by the result or by the stage of its error.
    pub(crate) fn record<T>(
        &mut self,
        result: Result<&T, &Error>,
        stage_of: impl FnOnce(Result<&T, Option<Stage>>) -> Stage,
    ) {
        self.record_at(self.clock.now(), result, stage_of);
    }

    /// Records a stage that ended at `now`.
    pub(crate) fn record_at<T>(
        &mut self,
        now: Moment,
        result: Result<&T, &Error>,
        stage_of: impl FnOnce(Result<&T, Option<Stage>>) -> Stage,
    ) {
        let elapsed = now.since(self.last);
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

    /// Returns the time from the start to the end of the last stage.
    pub(crate) fn waited(&self) -> Duration {
        self.last.since(self.began)
    }
}
