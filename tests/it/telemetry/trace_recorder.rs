//! A subscriber of tracing that records what it sees on one thread.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
};

use tracing::{
    Event, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, layer::Context, prelude::*, registry::LookupSpan};

/// The spans and events that a subscriber has seen.
#[derive(Clone, Default)]
pub(super) struct TraceRecorder(Arc<Mutex<Vec<Line>>>);

/// A span, or an event.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) name: String,
    pub(super) span: Option<Id>,
    parent: Option<Id>,
    pub(super) fields: BTreeMap<String, String>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        if field.name() == "message" {
            self.name = value;
        } else {
            self.fields.insert(field.name().to_owned(), value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields
            .insert(field.name().to_owned(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for TraceRecorder {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = context.span(id).and_then(|it| Some(it.parent()?.id()));
        let mut line = Line {
            name: span.metadata().name().to_owned(),
            span: Some(id.clone()),
            parent,
            fields: BTreeMap::new(),
        };
        span.record(&mut line);
        self.0.lock().unwrap().push(line);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut seen = self.0.lock().unwrap();
        if let Some(line) = seen.iter_mut().rfind(|it| it.span.as_ref() == Some(id)) {
            values.record(line);
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        if !event.metadata().target().starts_with("tenantry") {
            return;
        }
        let mut line = Line {
            name: String::new(),
            span: None,
            parent: context.event_span(event).map(|it| it.id()),
            fields: BTreeMap::new(),
        };
        event.record(&mut line);
        self.0.lock().unwrap().push(line);
    }
}

impl TraceRecorder {
    /// Sees what happens on this thread, as long as the rest is kept.
    pub(super) fn watch() -> (Self, impl Sized) {
        let seen = Self::default();
        // With only one subscriber in the process, tracing asks that of the thread that comes first: another test's.
        let another = tracing::Dispatch::new(tracing_subscriber::registry());
        let subscriber = tracing_subscriber::registry().with(seen.clone());
        let on_this_thread = tracing::subscriber::set_default(subscriber);
        (seen, (another, on_this_thread))
    }

    /// Takes the lines since the last time, each with the name of the span that it is in.
    pub(super) fn take(&self) -> Vec<(String, Line)> {
        let lines = std::mem::take(&mut *self.0.lock().unwrap());
        let name_of = |id: &Option<Id>| {
            let span = lines.iter().find(|it| id.is_some() && it.span == *id);
            span.map(|it| it.name.clone()).unwrap_or_default()
        };
        lines
            .iter()
            .map(|line| (name_of(&line.parent), line.clone()))
            .collect()
    }
}
