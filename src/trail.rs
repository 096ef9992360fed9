//! What a call leaves behind for whoever watches: a span, an event for each of its stages, and how long those took.

use std::future::Future;

use tokio::time::Instant;
use tracing::{Span, field::Empty};

use crate::{
    error::{Error, Stage},
    stats::{Path, Reason, Stats},
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

/// Waits for a part of a call, and tells which stage it was, by the result or by an error's own word, and how long it took.
pub(crate) async fn timed<T>(
    stats: &Stats,
    part: impl Future<Output = Result<T, Error>>,
    stage_of: impl FnOnce(Result<&T, Option<Stage>>) -> Stage,
) -> Result<T, Error> {
    let began = Instant::now();
    let result = part.await;
    let elapsed = began.elapsed();
    let stage = stage_of(result.as_ref().map_err(Error::stage));
    stats.meters.stage(stage, result.is_ok(), elapsed);
    let (stage, code) = (
        stage.code(),
        result.as_ref().err().map(|err| err.kind().code()),
    );
    tracing::debug!(stage, ?elapsed, code, "stage");
    result
}
