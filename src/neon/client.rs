//! The client: sending calls, repeating them, and giving them up.

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
/// Each operation has a method, named after the `operationId` in Neon's description.
///
/// Every call ends by its deadline. Until then, the client repeats a call that Neon refused for now (423, 429, 503). It
/// also repeats a call that changes nothing after any transport fault. It never repeats a call that changes something
/// and whose outcome is unknown. Calls wait for their turn under Neon's rate limit, which all clients of one key share.
///
/// # Errors
/// For a call that changes something, [`ErrorKind::ControlPlane`](crate::ErrorKind::ControlPlane) means that the
/// outcome is unknown. [`Refused`](crate::ErrorKind::Refused), [`Conflict`](crate::ErrorKind::Conflict) and
/// [`QuotaExhausted`](crate::ErrorKind::QuotaExhausted) mean that it changed nothing.
/// [`Timeout`](crate::ErrorKind::Timeout) ends a call that was refused for now until its deadline, or whose turn would
/// have come after the deadline. Such a call changed nothing, and the error's source gives the reason. The error's text
/// has Neon's own message and the id of the request.
///
/// # Cancel safety
/// Dropping the future does not undo a call that has been sent.
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
    /// The larger work that calls belong to; `None` if each call has a deadline of its own.
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
    // The regions in Neon's latest answer. The lock is held only for a lookup.
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

    /// Returns the settings of a client that sends `api_key`.
    pub fn builder(api_key: impl Into<Secret>) -> NeonBuilder {
        NeonBuilder::new(api_key.into())
    }

    /// Returns this client with the deadline of a larger piece of work in place of its own.
    #[must_use]
    pub fn within(&self, progress: &Progress) -> Self {
        Self {
            progress: Some(progress.clone()),
            ..self.clone()
        }
    }

    /// Returns this client for work that no caller waits for. Its calls are sent only while no other call of the same
    /// key waits for its turn under Neon's rate limit. Below the limit, its calls are as fast as others.
    #[must_use]
    pub fn background(&self) -> Self {
        Self {
            class: Class::Background,
            ..self.clone()
        }
    }

    /// Returns the organization that owns the projects, if the settings name one.
    pub(crate) fn org_id(&self) -> Option<Cow<'_, str>> {
        self.inner.org_id.as_deref().map(Cow::Borrowed)
    }

    pub(super) fn knows_region(&self, region: &str) -> bool {
        lock(&self.inner.regions).iter().any(|it| it == region)
    }

    pub(super) fn remember_regions(&self, regions: Vec<String>) {
        *lock(&self.inner.regions) = regions;
    }

    /// Returns the work that calls belong to: the larger one, or new work with the client's own deadline.
    pub(super) fn progress(&self) -> Progress {
        self.progress.clone().unwrap_or_else(|| {
            let progress = Progress::new(Stage::Provision, self.inner.call_timeout);
            progress.doing("calling neon's api")
        })
    }

    /// Repeats a call until it succeeds, is refused, or must not be sent again.
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
                    return Err(progress.timed_out()); // the process may have been suspended
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
        // An empty body, as with a 204, is read as `null`.
        let written: &[u8] = if body.is_empty() { b"null" } else { &body };
        serde_json::from_slice(written)
            .map_err(|err| Refusal::unreadable(status, &headers, &body, &err))
    }
}

/// Returns the span of one attempt, which begins after the wait for its turn.
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
