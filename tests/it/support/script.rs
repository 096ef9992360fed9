//! An API that answers by a script, for exact orders of answers. A script must be used up.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::{
        StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
};
use serde_json::Value;
use tenantry::{Neon, neon::NeonBuilder};
use tokio::{net::TcpListener, task::JoinHandle};

/// One answer of the script.
#[derive(Clone, Debug)]
pub(crate) enum Reply {
    Json(u16, Value),
    Html(u16),
    /// A body that need not be JSON, though it is said to be.
    Text(u16, &'static str),
    TooMany {
        retry_after: Option<u64>,
    },
    /// Sends the client elsewhere.
    Redirect,
    /// Takes this long, then answers with an empty list.
    Slow(Duration),
    /// Closes the connection without a word.
    Hangup,
    /// Closes the connection after the first byte of the body.
    HalfBody(u16),
}

#[derive(Clone, Default)]
struct Script {
    replies: Arc<Mutex<VecDeque<Reply>>>,
    /// Answered when the script is used up.
    endless: Option<Reply>,
    requests: Arc<Mutex<Vec<String>>>,
    /// Their bodies; null for none.
    bodies: Arc<Mutex<Vec<Value>>>,
}

static SERVERS: AtomicU32 = AtomicU32::new(0);

/// The server with the script.
pub(crate) struct ScriptedApi {
    url: String,
    script: Script,
    key: String,
    server: JoinHandle<()>,
}

impl ScriptedApi {
    /// Answers with `replies`, one after the other, and nothing else.
    pub(crate) async fn new(replies: impl IntoIterator<Item = Reply>) -> Self {
        let replies = Arc::new(Mutex::new(replies.into_iter().collect()));
        Self::serve(Script {
            replies,
            ..Script::default()
        })
        .await
    }

    /// Answers with `reply`, whatever comes.
    pub(crate) async fn endless(reply: Reply) -> Self {
        Self::serve(Script {
            endless: Some(reply),
            ..Script::default()
        })
        .await
    }

    async fn serve(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/api/v2", listener.local_addr().unwrap());
        let routes = Router::new().fallback(handle).with_state(script.clone());
        let server = tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        // A key of its own: clients of one key at one address share what they may send.
        let key = format!("napi_script_{}", SERVERS.fetch_add(1, Relaxed));
        Self {
            url,
            script,
            key,
            server,
        }
    }

    /// A client of this server, to be set up further.
    pub(crate) fn client(&self) -> NeonBuilder {
        Neon::builder(self.key.as_str()).base_url(&self.url)
    }

    /// The requests so far, the first of which has the id `req-1`, as `METHOD /path?query`.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.script.requests.lock().unwrap().clone()
    }

    /// The bodies of the requests so far; null for none.
    pub(crate) fn bodies(&self) -> Vec<Value> {
        self.script.bodies.lock().unwrap().clone()
    }

    /// Fails unless every answer has been used.
    pub(crate) fn assert_done(&self) {
        let left = self.script.replies.lock().unwrap();
        assert!(left.is_empty(), "not asked for: {left:?}");
    }
}

impl Drop for ScriptedApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(State(script): State<Script>, request: Request) -> Response {
    let path = request
        .uri()
        .path_and_query()
        .map(ToString::to_string)
        .unwrap_or_default();
    let line = format!("{} {path}", request.method());
    let body = axum::body::to_bytes(request.into_body(), 1 << 20)
        .await
        .unwrap();
    let number = {
        let mut requests = script.requests.lock().unwrap();
        requests.push(line);
        let body = serde_json::from_slice(&body).unwrap_or_default();
        script.bodies.lock().unwrap().push(body);
        requests.len()
    };
    let next = script
        .replies
        .lock()
        .unwrap()
        .pop_front()
        .or(script.endless);
    let next = next.unwrap_or_else(|| panic!("not in the script: {path}"));
    let mut response = to_response(next).await;
    let id = format!("req-{number}").parse().unwrap();
    response.headers_mut().insert("x-neon-ret-request-id", id);
    response
}

async fn to_response(reply: Reply) -> Response {
    let status = |code| StatusCode::from_u16(code).unwrap();
    match reply {
        Reply::Json(code, body) => (status(code), axum::Json(body)).into_response(),
        Reply::Html(code) => {
            (status(code), "<html><title>origin error</title></html>").into_response()
        }
        Reply::Text(code, body) => {
            (status(code), [(CONTENT_TYPE, "application/json")], body).into_response()
        }
        Reply::TooMany {
            retry_after: Some(seconds),
        } => (
            StatusCode::TOO_MANY_REQUESTS,
            [(RETRY_AFTER, seconds.to_string())],
            "{}",
        )
            .into_response(),
        Reply::TooMany { retry_after: None } => {
            (StatusCode::TOO_MANY_REQUESTS, "{}").into_response()
        }
        Reply::Redirect => {
            (StatusCode::FOUND, [("location", "http://127.0.0.1:1/")]).into_response()
        }
        Reply::Slow(time) => {
            tokio::time::sleep(time).await;
            axum::Json(serde_json::json!({ "projects": [] })).into_response()
        }
        // A body that fails before its first byte makes hyper close the connection.
        Reply::HalfBody(code) => {
            let half = futures_util::stream::unfold(0, |part| async move {
                if part == 0 {
                    return Some((Ok(&b"{"[..]), 1));
                }
                tokio::time::sleep(Duration::from_millis(50)).await; // so that the first part is sent
                Some((Err(std::io::Error::other("hang up")), 2))
            });
            (status(code), axum::body::Body::from_stream(half)).into_response()
        }
        Reply::Hangup => Response::new(axum::body::Body::from_stream(futures_util::stream::once(
            async { Err::<&[u8], _>(std::io::Error::other("hang up")) },
        ))),
    }
}
