//! The measurements as a table, as figures and as curves.

use std::time::Duration;

use plotters::style::RGBColor;
use tenantry::BoxError;

use crate::{
    chart::{self, Curve, Panel, Row},
    support::{Samples, Table, figures_folder, write_figures},
    traffic::CALLERS,
};

/// In the order of the ways.
const COLORS: [RGBColor; 4] = [
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(0, 114, 178),
    RGBColor(176, 176, 176),
];

/// The measurements of one way.
pub(crate) struct Outcome {
    pub(crate) way: &'static str,
    pub(crate) took: Duration,
    pub(crate) answered: Samples,
    pub(crate) errors: usize,
    /// Resident bytes that came on top.
    pub(crate) memory: i64,
    pub(crate) wakes: usize,
    pub(crate) logins: usize,
    pub(crate) sessions: usize,
}

pub(crate) struct Report(pub(crate) Vec<Outcome>);

impl Report {
    pub(crate) fn print(&self) {
        println!("\nZipf over all tenants, one query each, {CALLERS} callers\n");
        let mut table = Table::new(&[
            "",
            "queries/s",
            "p50",
            "p99",
            "memory",
            "wakes",
            "logins",
            "sessions",
            "errors",
        ]);
        for it in &self.0 {
            table.row(&[
                it.way,
                &format!("{:.0}", it.per_second()),
                &format!("{:.2} ms", it.answered.at(0.5)),
                &it.answered.ms(0.99),
                &format!("{:.1} MB", it.megabytes()),
                &it.wakes.to_string(),
                &it.logins.to_string(),
                &it.sessions.to_string(),
                &it.errors.to_string(),
            ]);
        }
        table.print();
    }

    pub(crate) fn write(&self) -> Result<(), BoxError> {
        let figures: Vec<_> = self.0.iter().flat_map(Outcome::figures).collect();
        write_figures("beside", &figures)?;
        let curves = self.0.iter().zip(COLORS).map(|(it, color)| Curve {
            name: Some(it.way),
            color,
            width: 2,
            dashed: false,
            from: 0.0,
            samples: &it.answered,
        });
        let title = format!("One query each, {CALLERS} callers; a wake takes 100 ms");
        let row = Row {
            title: "Time until the answer",
            panels: vec![Panel {
                title,
                curves: curves.collect(),
            }],
        };
        let path = figures_folder()?.join("beside.svg");
        chart::draw(&path, "Many tenants, by four ways", &[row])
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
impl Outcome {
    fn per_second(&self) -> f64 {
        self.answered.count() as f64 / self.took.as_secs_f64()
    }

    fn megabytes(&self) -> f64 {
        self.memory as f64 / 1e6
    }

    fn figures(&self) -> [(String, f64); 8] {
        [
            ("queries_per_s", self.per_second()),
            ("p50_ms", self.answered.at(0.5)),
            ("p99_ms", self.answered.at(0.99)),
            ("memory_mb", self.megabytes()),
            ("wakes", self.wakes as f64),
            ("logins", self.logins as f64),
            ("sessions", self.sessions as f64),
            ("errors", self.errors as f64),
        ]
        .map(|(what, value)| (format!("beside_{}_{what}", self.way), value))
    }
}
