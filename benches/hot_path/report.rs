//! The measurements as a table and as figures.

use tenantry::BoxError;

use crate::{
    rounds::Comparison,
    support::{Table, write_figures},
};

/// Everything that was measured.
#[derive(Default)]
pub(crate) struct Report {
    compared: Vec<(String, String, Comparison)>,
    /// Counts, which are compared with nothing: allocations, instructions, round trips.
    counted: Vec<(String, f64)>,
}

impl Report {
    /// Adds to the figure `name` what was measured in one way.
    pub(crate) fn add(&mut self, name: &str, how: &str, compared: Comparison) {
        self.compared
            .push((name.to_owned(), how.to_owned(), compared));
    }

    /// Adds figures that are no ratios.
    pub(crate) fn count(&mut self, figures: impl IntoIterator<Item = (String, f64)>) {
        self.counted.extend(figures);
    }

    pub(crate) fn print(&self) {
        println!(
            "\nOne call, in ns; and the ratio at the median, with nine rounds of ten in between\n"
        );
        let mut table = Table::new(&[
            "figure",
            "how",
            "beside it",
            "tenantry",
            "ratio",
            "p5",
            "p95",
        ]);
        for (name, how, it) in &self.compared {
            table.row(&[
                name,
                how,
                &format!("{:.0}", it.plain),
                &format!("{:.0}", it.ours),
                &format!("{:.3}", it.ratio()),
                &format!("{:.3}", it.at(5)),
                &format!("{:.3}", it.at(95)),
            ]);
        }
        table.print();
        println!();
        for (name, value) in self.figures() {
            println!("{name} {value:.3}");
        }
    }

    pub(crate) fn write(&self) -> Result<(), BoxError> {
        write_figures("hot_path", &self.figures())
    }

    /// Of what was measured in several ways, the worst.
    fn figures(&self) -> Vec<(String, f64)> {
        let mut figures: Vec<(String, f64)> = Vec::new();
        for (name, _, compared) in &self.compared {
            let ratio = compared.ratio();
            match figures.iter_mut().find(|(it, _)| it == name) {
                Some((_, worst)) => *worst = worst.max(ratio),
                None => figures.push((name.clone(), ratio)),
            }
        }
        figures.extend(self.counted.iter().cloned());
        figures
    }
}
