//! The measurements as names and numbers. The plain names are of the usual wake, pooled host, direct TLS.

use super::{
    alone::Alone,
    bystanders::Bystanders,
    herd::{self, Herd},
    report::{Report, over},
};

impl Report {
    pub(crate) fn figures(&self) -> Vec<(String, f64)> {
        let mut figures: Vec<_> = self.alone.iter().flat_map(Alone::figures).collect();
        figures.extend(self.herd_figures());
        figures.extend(self.bystanders.iter().flat_map(Bystanders::figures));
        figures.extend(self.relay_figures());
        figures.retain(|(_, value)| !value.is_nan());
        figures
    }

    fn herd_figures(&self) -> Vec<(String, f64)> {
        self.herds
            .iter()
            .flat_map(herd::InSetting::figures)
            .collect()
    }

    fn relay_figures(&self) -> impl Iterator<Item = (String, f64)> {
        self.relays.iter().flat_map(|(round_trip, took)| {
            [("median_ms", 0.5), ("p99_ms", 0.99)].map(|(what, share)| {
                let name = format!("relay_rtt_{}ms_{what}", round_trip.as_millis());
                (name, took.at(share))
            })
        })
    }
}

impl Alone {
    fn figures(&self) -> Vec<(String, f64)> {
        let mut figures = vec![
            ("compute_start_median_ms".to_owned(), self.start.at(0.5)),
            ("compute_stop_median_ms".to_owned(), self.stop.at(0.5)),
        ];
        for it in &self.settings {
            let [ours, deadpool, sqlx] = &it.clients[..] else {
                continue;
            };
            let named = [
                ("resume_samples", count(ours.took.count())),
                ("resume_errors", f64::from(ours.errors)),
                ("resume_median_over_floor", over(&ours.took, &it.floor, 0.5)),
                ("resume_p90_over_floor", over(&ours.took, &it.floor, 0.9)),
                ("resume_p99_over_floor", over(&ours.took, &it.floor, 0.99)),
                ("resume_median_ms", ours.took.at(0.5)),
                ("resume_p99_ms", ours.took.at(0.99)),
                ("floor_median_ms", it.floor.at(0.5)),
                ("floor_p99_ms", it.floor.at(0.99)),
                ("plain_pool_median_ms", deadpool.took.at(0.5)),
                ("plain_pool_p99_ms", deadpool.took.at(0.99)),
                ("plain_pool_errors", f64::from(deadpool.errors)),
                ("plain_sqlx_median_ms", sqlx.took.at(0.5)),
                ("plain_sqlx_p99_ms", sqlx.took.at(0.99)),
                ("plain_sqlx_errors", f64::from(sqlx.errors)),
            ];
            figures
                .extend(named.map(|(name, value)| (name.to_owned() + &it.setting.suffix(), value)));
        }
        figures
    }
}

impl herd::InSetting {
    fn figures(&self) -> Vec<(String, f64)> {
        let of = |it: &Herd| {
            let whose = match it.name {
                "tenantry" => "herd",
                "sqlx" => "plain_sqlx_herd",
                _ => "plain_pool_herd",
            };
            [
                ("p99_ms", it.asleep.at(0.99)),
                ("awake_p99_ms", it.awake.at(0.99)),
                ("p99_over_deadpool", self.over_deadpool(it)),
                ("p99_over_awake", Self::over_awake(it)),
                (
                    "p99_over_awake_pooler_warm",
                    Self::over_awake_pooler_warm(it),
                ),
                ("warm_p99_ms", it.warm.at(0.99)),
                ("p99_over_warm", Self::over_warm(it)),
                ("auth_attempts", it.auth_attempts.map_or(f64::NAN, count)),
                ("errors", f64::from(it.errors)),
            ]
            .map(|(what, value)| {
                (
                    format!("{whose}_1000_{what}{}", self.setting.suffix()),
                    value,
                )
            })
        };
        self.herds.iter().flat_map(of).collect()
    }
}

impl Bystanders {
    fn figures(&self) -> Vec<(String, f64)> {
        [
            (
                "bystander_p99_over_calm",
                over(&self.waking, &self.calm, 0.99),
            ),
            ("bystander_calm_p99_ms", self.calm.at(0.99)),
            ("bystander_errors", f64::from(self.errors)),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
    }
}

#[allow(clippy::cast_precision_loss, reason = "small counts")]
fn count(of: usize) -> f64 {
    of as f64
}
