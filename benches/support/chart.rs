//! Distributions as curves: which share of the callers had its answer after how long.

use std::path::Path;

use plotters::{
    chart::{ChartBuilder, ChartContext, SeriesLabelPosition},
    coord::{Shift, types::RangedCoordf64},
    element::PathElement,
    prelude::{Cartesian2d, DrawingArea, IntoDrawingArea, RGBColor, SVGBackend},
    series::{DashedLineSeries, LineSeries},
    style::{BLACK, Color, ShapeStyle, WHITE},
};
use tenantry::BoxError;

use super::support::Samples;

const WIDTH: u32 = 1500;
const ROW_HEIGHT: u32 = 360;
const TITLE_HEIGHT: u32 = 40;
const FONT: &str = "sans-serif";
/// The slowest are in the tables; here they would squeeze all others.
const SHOWN: f64 = 0.995;
/// Points of a curve.
const STEPS: u32 = 200;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Panels side by side.
pub(crate) struct Row<'a> {
    pub(crate) title: &'static str,
    pub(crate) panels: Vec<Panel<'a>>,
}

/// One system of axes.
pub(crate) struct Panel<'a> {
    pub(crate) title: String,
    pub(crate) curves: Vec<Curve<'a>>,
}

/// One distribution. What has no name is not in the legend.
pub(crate) struct Curve<'a> {
    pub(crate) name: Option<&'static str>,
    pub(crate) color: RGBColor,
    pub(crate) width: u32,
    pub(crate) dashed: bool,
    /// The time, in milliseconds, that is left out.
    pub(crate) from: f64,
    pub(crate) samples: &'a Samples,
}

/// Draws the rows, one below the other.
pub(crate) fn draw(path: &Path, title: &str, rows: &[Row<'_>]) -> Result<(), BoxError> {
    let height = ROW_HEIGHT * u32::try_from(rows.len())? + TITLE_HEIGHT;
    let root = SVGBackend::new(path, (WIDTH, height)).into_drawing_area();
    root.fill(&WHITE)?;
    let below = root.titled(title, (FONT, 26))?;
    for (row, area) in rows.iter().zip(below.split_evenly((rows.len(), 1))) {
        let below = area.titled(row.title, (FONT, 19))?;
        let areas = below.split_evenly((1, row.panels.len()));
        for (panel, area) in row.panels.iter().zip(areas) {
            panel.draw(&area)?;
        }
    }
    root.present()?;
    Ok(())
}

impl Panel<'_> {
    fn draw(&self, area: &Area<'_>) -> Result<(), BoxError> {
        let drawn = || self.curves.iter().filter(|it| it.samples.count() > 0);
        let least = drawn().map(|it| it.at(0.0)).fold(f64::MAX, f64::min);
        let most = drawn().map(|it| it.at(SHOWN)).fold(0.0, f64::max);
        if least > most {
            return Ok(()); // nothing was measured
        }
        let margin = ((most - least) * 0.03).max(0.1);
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, (FONT, 16))
            .margin(12)
            .margin_right(24)
            .x_label_area_size(38)
            .y_label_area_size(48)
            .build_cartesian_2d(least - margin..most + margin, 0.0..1.0)?;
        chart
            .configure_mesh()
            .x_desc("ms")
            .y_desc("share of the callers")
            .x_labels(8)
            .y_labels(6)
            .x_label_formatter(&|x| format!("{x:.0}"))
            .label_style((FONT, 13))
            .light_line_style(WHITE)
            .draw()?;
        for curve in drawn() {
            curve.draw(&mut chart)?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::LowerRight)
            .label_font((FONT, 13))
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2))
            .draw()?;
        Ok(())
    }
}

impl Curve<'_> {
    fn at(&self, share: f64) -> f64 {
        self.samples.at(share) - self.from
    }

    fn draw(&self, chart: &mut Chart<'_, '_>) -> Result<(), BoxError> {
        let style = self.color.stroke_width(self.width);
        let shares = (0..=STEPS).map(|step| f64::from(step) / f64::from(STEPS));
        let shares = shares.filter(|share| *share <= SHOWN);
        let points: Vec<_> = shares.map(|it| (self.at(it), it)).collect();
        let drawn = if self.dashed {
            chart.draw_series(DashedLineSeries::new(points, 5, 4, style))?
        } else {
            chart.draw_series(LineSeries::new(points, style))?
        };
        if let Some(name) = self.name {
            drawn.label(name).legend(move |at| key(at, style));
        }
        Ok(())
    }
}

/// A line of the legend.
fn key((x, y): (i32, i32), style: ShapeStyle) -> PathElement<(i32, i32)> {
    PathElement::new(vec![(x, y), (x + 18, y)], style)
}
