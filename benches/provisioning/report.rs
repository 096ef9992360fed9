//! The measurements as tables and as figures.

use tenantry::BoxError;

use crate::{
    first_access::FirstAccess,
    fleet::Provisioned,
    lookups::Lookups,
    support::{Samples, Table, write_figures},
};

/// Calls per minute that Neon takes, and that the client keeps to by default.
const LIMIT: f64 = 700.0;

/// Everything that was measured.
pub(crate) struct Report {
    pub(crate) first_access: FirstAccess,
    pub(crate) fleet: Provisioned,
    pub(crate) lookups: Lookups,
}

impl Report {
    pub(crate) fn print(&self) {
        self.first_access.print();
        self.fleet.print();
        let Lookups { alone, .. } = &self.lookups;
        println!(
            "\nLookups in the catalog: median {:.3} ms, p99 {:.3} ms one after another; {:.0} per second by 16 callers",
            alone.at(0.5),
            alone.at(0.99),
            self.lookups.per_second(),
        );
    }

    pub(crate) fn write(&self) -> Result<(), BoxError> {
        let Self {
            first_access,
            fleet,
            lookups,
        } = self;
        let FirstAccess { floor, ours, .. } = first_access;
        let figures = [
            ("first_access_samples", count(ours.all.count())),
            (
                "first_access_median_over_floor",
                ours.all.at(0.5) / floor.all.at(0.5),
            ),
            (
                "first_access_without_start_median_over_floor",
                ours.without_start.at(0.5) / floor.without_start.at(0.5),
            ),
            ("first_access_median_ms", ours.all.at(0.5)),
            ("first_access_floor_median_ms", floor.all.at(0.5)),
            (
                "first_access_without_start_median_ms",
                ours.without_start.at(0.5),
            ),
            (
                "first_access_without_start_floor_median_ms",
                floor.without_start.at(0.5),
            ),
            (
                "first_access_catalog_median_ms",
                first_access.catalog.at(0.5),
            ),
            ("first_access_catalog_calls", first_access.catalog_calls()),
            ("tenants", count(fleet.tenants)),
            ("throughput_over_limit", fleet.over_limit()),
            ("tenants_per_minute", fleet.per_minute()),
            ("calls_per_tenant", fleet.calls_per_tenant()),
            ("catalog_calls_per_tenant", fleet.catalog_calls()),
            ("lookup_median_ms", lookups.alone.at(0.5)),
            ("lookup_p99_ms", lookups.alone.at(0.99)),
            ("lookups_per_second", lookups.per_second()),
        ];
        write_figures("provisioning", &figures)
    }
}

impl FirstAccess {
    fn print(&self) {
        println!("\nFrom nothing to the first row, each call of the API 100 ms\n");
        let mut table = Table::new(&["", "samples", "median", "p90", "p99", "over floor"]);
        let Self { floor, ours, .. } = self;
        for (name, it, floor) in [
            (
                "floor: create, operations, connect, query",
                &floor.all,
                &floor.all,
            ),
            ("tenantry: get, query", &ours.all, &floor.all),
            (
                "floor, without the start of Postgres",
                &floor.without_start,
                &floor.without_start,
            ),
            (
                "tenantry, without it",
                &ours.without_start,
                &floor.without_start,
            ),
            ("of it on the catalog", &self.catalog, &floor.without_start),
        ] {
            table.row(&[
                name,
                &it.count().to_string(),
                &it.ms(0.5),
                &it.ms(0.9),
                &it.ms(0.99),
                &format!("{:.3}", it.at(0.5) / floor.at(0.5)),
            ]);
        }
        table.print();
        println!(
            "\nThe catalog was asked {:.1} times each.",
            self.catalog_calls()
        );
    }

    fn catalog_calls(&self) -> f64 {
        count(self.catalog_calls) / count(self.ours.all.count())
    }
}

impl Provisioned {
    fn print(&self) {
        println!(
            "\n{} tenants provisioned in {:.1} s: {:.0} a minute, {:.1} calls each, {:.3} of the limit\n",
            self.tenants,
            self.took.as_secs_f64(),
            self.per_minute(),
            self.calls_per_tenant(),
            self.over_limit(),
        );
        let mut table = Table::new(&["the catalog's part", "per tenant", "median", "p99"]);
        for (name, took) in &self.catalog {
            let mut samples = Samples::default();
            samples.extend(took.iter().copied());
            let each = count(took.len()) / count(self.tenants);
            table.row(&[
                name,
                &format!("{each:.2}"),
                &samples.ms(0.5),
                &samples.ms(0.99),
            ]);
        }
        table.print();
    }

    fn over_limit(&self) -> f64 {
        self.per_minute() * self.calls_per_tenant() / LIMIT
    }

    fn per_minute(&self) -> f64 {
        count(self.tenants) / (self.took.as_secs_f64() / 60.0)
    }

    fn calls_per_tenant(&self) -> f64 {
        count(usize::try_from(self.calls).unwrap_or(usize::MAX)) / count(self.tenants)
    }

    fn catalog_calls(&self) -> f64 {
        count(self.catalog.values().map(Vec::len).sum()) / count(self.tenants)
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn count(of: usize) -> f64 {
    of as f64
}
