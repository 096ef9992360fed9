//! Faults that a test can set at the API.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use axum::{
    Json,
    body::{Body, to_bytes},
    http::{
        StatusCode,
        header::{CONTENT_LENGTH, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use serde_json::{Value, json};

/// A fault of requests to the API.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ApiFault {
    /// Status 423: other operations lock the project. Nothing is done.
    Locked,
    /// Status 429, with the seconds to wait if any. Nothing is done.
    RateLimited {
        /// Value of `Retry-After`, in seconds.
        retry_after: Option<u64>,
    },
    /// This status with Neon's error body. Nothing is done.
    Status(u16),
    /// This status with a page of HTML, as the network in front of Neon's API answers. Nothing is done.
    Html(u16),
    /// The work is done, and the connection is closed without an answer.
    AnswerLost,
    /// The work is done, and the answer comes late.
    Slow {
        /// Delay of the answer, in milliseconds.
        milliseconds: u64,
    },
    /// The work is done. The answer has fields and values that the API's description does not know, like one of a newer
    /// API.
    Unfamiliar,
}

/// The faults that wait for their requests.
#[derive(Debug, Default)]
pub(in crate::emulator) struct ApiFaults {
    // Guards the list. Held only for short reads and writes.
    waiting: Mutex<Vec<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    route: String,
    fault: ApiFault,
    times: u32,
}

impl ApiFaults {
    /// Makes the next `times` requests that begin with `route` (`POST /projects`) meet `fault`.
    pub(in crate::emulator) fn add(&self, route: String, fault: ApiFault, times: u32) {
        if times > 0 {
            self.waiting().push(Waiting {
                route,
                fault,
                times,
            });
        }
    }

    pub(in crate::emulator) fn clear(&self) {
        self.waiting().clear();
    }

    /// Takes the fault that a request meets, if any.
    pub(in crate::emulator) fn meet(&self, request: &str) -> Option<ApiFault> {
        let mut waiting = self.waiting();
        let place = waiting
            .iter()
            .position(|it| request.starts_with(&it.route))?;
        let fault = waiting[place].fault.clone();
        waiting[place].times = waiting[place].times.saturating_sub(1);
        waiting.retain(|it| it.times > 0);
        Some(fault)
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ApiFault {
    /// Returns the answer in place of the work; `None` if the work is done first.
    pub(in crate::emulator) fn instead(&self) -> Option<Response> {
        match self {
            Self::Locked => {
                let text = "project already has running conflicting operations, scheduling of new ones is prohibited";
                Some(refused(StatusCode::LOCKED, text))
            }
            Self::RateLimited { retry_after } => {
                let mut answer = refused(StatusCode::TOO_MANY_REQUESTS, "rate limit exceeded");
                if let Some(seconds) = retry_after {
                    answer.headers_mut().insert(RETRY_AFTER, (*seconds).into());
                }
                Some(answer)
            }
            Self::Status(code) => Some(refused(status(*code), "as ordered")),
            Self::Html(code) => {
                let page = "<html><head><title>origin error</title></head></html>";
                Some((status(*code), [("content-type", "text/html")], page).into_response())
            }
            Self::AnswerLost | Self::Slow { .. } | Self::Unfamiliar => None,
        }
    }

    /// Applies the fault to the answer, after the work is done.
    pub(in crate::emulator) async fn afterwards(&self, answer: Response) -> Response {
        match self {
            // A body that fails before its first byte makes the server close the connection.
            Self::AnswerLost => {
                Response::new(Body::from_stream(futures_util::stream::once(async {
                    Err::<&[u8], _>(std::io::Error::other("lost on command"))
                })))
            }
            Self::Slow { milliseconds } => {
                tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
                answer
            }
            Self::Unfamiliar => unfamiliar(answer).await,
            Self::Locked | Self::RateLimited { .. } | Self::Status(_) | Self::Html(_) => answer,
        }
    }
}

/// Returns the answer as an API newer than its description would give it.
async fn unfamiliar(answer: Response) -> Response {
    let (mut head, body) = answer.into_parts();
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let Ok(mut value) = serde_json::from_slice(&body) else {
        return Response::from_parts(head, Body::from(body));
    };
    estrange(&mut value);
    head.headers.remove(CONTENT_LENGTH);
    Response::from_parts(head, Body::from(value.to_string()))
}

/// Adds an unknown field to every object, and replaces every value of the listed fields by an unknown one.
fn estrange(value: &mut Value) {
    /// Fields with values that Neon enumerates, and adds to.
    const LISTED: &[&str] = &[
        "action",
        "creation_source",
        "platform_id",
        "provisioner",
        "pooler_mode",
    ];
    match value {
        Value::Array(items) => items.iter_mut().for_each(estrange),
        Value::Object(fields) => {
            for (name, value) in fields.iter_mut() {
                if LISTED.contains(&name.as_str()) {
                    *value = json!("unheard_of");
                }
                estrange(value);
            }
            fields.insert("brand_new".to_owned(), json!({ "deep": [1, null, "x"] }));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn refused(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "code": "", "message": message }))).into_response()
}

fn status(code: u16) -> StatusCode {
    StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}
