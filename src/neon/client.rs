//! The client: how a call is sent, repeated, and given up.

use std::{
    borrow::Cow,
    fmt,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tracing::{Instrument, Span, field::Empty};
use url::Url;

use super::{
    builder::NeonBuilder,
    limiter::Limiter,
    redact::excerpt,
    refusal::{Refusal, request_id},
    request::{Call, Route},
};
use crate::{
    model::{
        error::{Error, Stage},
        secret::Secret,
    },
    sync::{
        lock,
        progress::{Class, Progress},
        retry::{backoff, retry},
    },
    telemetry::metrics,
};

/// A client of Neon's management API.
///
/// There is a method for each operation, of the name that Neon's description gives it (`operationId`).
///
/// Every call ends by its deadline. A call that was refused for now (423, 429, 503) is repeated until then, and so is a
/// call that changes nothing after any fault of the transport; a call that changes something and whose outcome is
/// unknown is never repeated. Calls wait for their turn under Neon's rate limit, all clients of one key together.
///
/// # Errors
/// [`ErrorKind::ControlPlane`](crate::ErrorKind::ControlPlane) of a call that changes something means that it is
/// unknown whether it did; [`Refused`](crate::ErrorKind::Refused), [`Conflict`](crate::ErrorKind::Conflict) and
/// [`QuotaExhausted`](crate::ErrorKind::QuotaExhausted) mean that it did not. [`Timeout`](crate::ErrorKind::Timeout) is
/// the end of every call that was refused for now until its time was over, or whose turn would have come after that: a
/// call that changes something was not done then, and the source says why. The text has Neon's own words and the id of
/// the request.
///
/// # Cancel safety
/// Dropping a call that has been sent does not take it back.
///
/// ```no_run
/// use tenantry::Neon;
///
/// # #[tokio::main] async fn main() -> Result<(), tenantry::BoxError> {
/// let neon = Neon::from_env()?.org_id("org-cool-dew-123").build()?;
/// for project in neon.projects_named("production-acme-0123").await? {
///     println!("{} was created {}", project.id, project.created_at);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Neon {
    inner: Arc<Inner>,
    /// The work that calls belong to, if they do not stand for themselves.
    progress: Option<Progress>,
    class: Class,
}

pub(super) struct Inner {
    pub(super) http: reqwest::Client,
    pub(super) base: Url,
    pub(super) key: Secret,
    pub(super) org_id: Option<String>,
    pub(super) request_timeout: Duration,
    pub(super) call_timeout: Duration,
    pub(super) limiter: Limiter,
    // The regions that Neon named when it was asked last. Held for a look.
    pub(super) regions: Mutex<Vec<String>>,
}

impl Neon {
    pub(super) fn new(inner: Inner) -> Self {
        Self {
            inner: Arc::new(inner),
            progress: None,
            class: Class::Interactive,
        }
    }

    /// A client that sends `api_key`.
    pub fn builder(api_key: impl Into<Secret>) -> NeonBuilder {
        NeonBuilder::new(api_key.into())
    }

    /// This client, with the deadline of a larger piece of work in place of its own.
    #[must_use]
    pub fn within(&self, progress: &Progress) -> Self {
        Self {
            progress: Some(progress.clone()),
            ..self.clone()
        }
    }

    /// This client for work that nobody waits for: its calls are sent only while no other call of the same key waits
    /// for its turn under Neon's rate limit. Without any limit in the way it is as fast.
    #[must_use]
    pub fn background(&self) -> Self {
        Self {
            class: Class::Background,
            ..self.clone()
        }
    }

    /// The organization that owns the projects, if one was named.
    pub(crate) fn org_id(&self) -> Option<Cow<'_, str>> {
        self.inner.org_id.as_deref().map(Cow::Borrowed)
    }

    pub(super) fn knows_region(&self, region: &str) -> bool {
        lock(&self.inner.regions).iter().any(|it| it == region)
    }

    pub(super) fn remember_regions(&self, regions: Vec<String>) {
        *lock(&self.inner.regions) = regions;
    }

    /// The work that calls belong to: the larger one, or one of their own.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone().unwrap_or_else(|| {
            let progress = Progress::new(Stage::Provision, self.inner.call_timeout);
            progress.doing("calling neon's api")
        })
    }

    /// Sends a call until it succeeds, is refused, or must not be repeated.
    pub(super) async fn call<T: DeserializeOwned>(&self, call: Call<'_>) -> Result<T, Error> {
        let url = call.url(&self.inner.base)?;
        let waits = backoff(Duration::from_millis(250), Duration::from_secs(10));
        let (call, url, progress) = (&call, &url, &self.progress());
        let mut attempts = 0_u32;
        let answer = retry(progress, waits, || {
            attempts += 1;
            let attempt = attempts;
            async move {
                self.wait_for_turn(call, progress).await?;
                if progress.remaining().is_zero() {
                    return Err(progress.timed_out()); // the process may have stood still meanwhile
                }
                let limit = self.inner.request_timeout.min(progress.remaining());
                let span = span(call, attempt);
                let sent = self.send(call, url, limit, &span);
                match sent.instrument(span.clone()).await {
                    Ok(answer) => Ok(Ok(answer)),
                    Err(refusal) if refusal.may_repeat(&call.route.method) => Err(refusal.error),
                    Err(refusal) => Ok(Err(refusal.error)),
                }
            }
        });
        answer.await?
    }

    async fn wait_for_turn(&self, call: &Call<'_>, progress: &Progress) -> Result<(), Error> {
        let Inner { limiter, .. } = &*self.inner;
        let (began, class) = (Instant::now(), self.class.max(progress.class()));
        let passed = limiter.pass(call.route.operation, class, progress).await;
        metrics::limited(began.elapsed());
        passed
    }

    async fn send<T: DeserializeOwned>(
        &self,
        call: &Call<'_>,
        url: &Url,
        limit: Duration,
        span: &Span,
    ) -> Result<T, Refusal> {
        let Inner { http, key, .. } = &*self.inner;
        let method = &call.route.method;
        let mut request = http
            .request(method.clone(), url.clone())
            .bearer_auth(key.expose())
            .timeout(limit);
        if !call.query.is_empty() {
            request = request.query(&call.query);
        }
        if let Some(body) = &call.body {
            request = request.json(body);
        }
        let (began, sent) = (Instant::now(), request.send().await);
        let answered = sent.as_ref().ok().map(|it| it.status().as_u16());
        metrics::answered(call.route.operation, answered, began.elapsed());
        let response = sent.map_err(Refusal::transport)?;
        let (status, headers) = (response.status(), response.headers().clone());
        span.record("status", status.as_u16());
        span.record("request_id", request_id(&headers).map(excerpt));
        tracing::debug!("neon api");
        if !status.is_success() {
            let refusal = Refusal::answer(response).await;
            if let Some(wait) = refusal.slow_down() {
                self.inner.limiter.hold(call.route.operation, wait);
            }
            return Err(refusal);
        }
        let body = response.bytes().await;
        let body = body.map_err(|err| Refusal::broken_off(status, &headers, err))?;
        // No body at all, as with a 204, is read as `null`.
        let written: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(written)
            .map_err(|err| Refusal::unreadable(status, &headers, &body, &err))
    }
}

/// The span of one attempt, from the sending of the request on.
fn span(call: &Call<'_>, attempt: u32) -> Span {
    let Route {
        method,
        operation,
        template,
    } = call.route;
    tracing::debug_span!(
        "neon_api",
        operation,
        %method,
        path = template,
        project = call.project(),
        attempt,
        status = Empty,
        request_id = Empty,
    )
}

impl fmt::Debug for Neon {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Neon")
            .field("host", &self.inner.base.host_str())
            .finish_non_exhaustive()
    }
}
