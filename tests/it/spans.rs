//! The spans of a call, as a subscriber sees them.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

use crate::support::{Reply, ScriptedApi};

type Fields = BTreeMap<&'static str, String>;

/// Keeps the fields of each span of the client, in the order in which they began.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<(Id, Fields)>>>);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Spans {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        if span.metadata().name() == "neon_api" {
            let mut spans = self.0.lock().unwrap();
            let mut fields = Fields::new();
            span.record(&mut Writer(&mut fields));
            spans.push((id.clone(), fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.0.lock().unwrap();
        // An id can be given again when its span has ended: the latest is meant.
        if let Some((_, fields)) = spans.iter_mut().rfind(|(its, _)| its == id) {
            values.record(&mut Writer(fields));
        }
    }
}

struct Writer<'a>(&'a mut Fields);

impl Visit for Writer<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

#[tokio::test]
async fn each_attempt_of_a_call_has_a_span_with_neons_id_of_the_request() {
    let spans = Spans::default();
    let subscriber = tracing_subscriber::registry().with(spans.clone());
    let _on_this_thread = tracing::subscriber::set_default(subscriber);
    let api = ScriptedApi::new([
        Reply::Json(503, json!({})),
        Reply::Json(200, json!({ "project": { "id": "p-1" } })),
    ])
    .await;
    let neon = api.client().build().unwrap();
    neon.get_project("p-1").await.unwrap();

    let seen: Vec<Fields> = spans
        .0
        .lock()
        .unwrap()
        .iter()
        .map(|(_, fields)| fields.clone())
        .collect();
    let expected = |attempt: &str, status: &str, request_id: &str| {
        Fields::from([
            ("operation", "getProject".to_owned()),
            ("method", "GET".to_owned()),
            ("path", "/projects/{project_id}".to_owned()),
            ("project", "p-1".to_owned()),
            ("attempt", attempt.to_owned()),
            ("status", status.to_owned()),
            ("request_id", request_id.to_owned()),
        ])
    };
    assert_eq!(
        seen,
        [expected("1", "503", "req-1"), expected("2", "200", "req-2")]
    );
}
