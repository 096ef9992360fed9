//! What projects consumed.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::{project::Pagination, tolerant};

/// What to ask about consumption.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionQuery {
    /// The organization whose projects are meant.
    pub org_id: String,
    /// Only these projects, at most 100; all of the organization if empty.
    pub project_ids: Vec<String>,
    /// Where the time asked about begins. Neon rounds it down to the granularity.
    pub from: SystemTime,
    /// Where the time asked about ends. Neon rounds it to the granularity.
    pub to: SystemTime,
    /// Length of one timeframe of the answer.
    pub granularity: Granularity,
    /// What was measured, such as `compute_unit_seconds` or `public_network_transfer_bytes`.
    pub metrics: Vec<String>,
    /// Where the page begins: the `cursor` of the page before it.
    pub cursor: Option<String>,
    /// Most projects on the page, 1 to 100; Neon's default is 10.
    pub limit: Option<u8>,
}

impl ConsumptionQuery {
    /// Asks about all projects of `org_id`, by the day.
    pub fn new<M: Into<String>>(
        org_id: impl Into<String>,
        from: SystemTime,
        to: SystemTime,
        metrics: impl IntoIterator<Item = M>,
    ) -> Self {
        Self {
            org_id: org_id.into(),
            project_ids: Vec::new(),
            from,
            to,
            granularity: Granularity::Daily,
            metrics: metrics.into_iter().map(Into::into).collect(),
            cursor: None,
            limit: None,
        }
    }

    /// Sets the length of one timeframe. Defaults to a day.
    #[must_use]
    pub fn granularity(mut self, granularity: Granularity) -> Self {
        self.granularity = granularity;
        self
    }

    /// Asks about these projects only, at most 100. Defaults to all of the organization.
    #[must_use]
    pub fn projects<P: Into<String>>(mut self, ids: impl IntoIterator<Item = P>) -> Self {
        self.project_ids = ids.into_iter().map(Into::into).collect();
        self
    }

    /// Goes on where a page ended.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// Sets the size of the page, 1 to 100. Defaults to Neon's 10; more saves requests, of which Neon takes about 30 a
    /// minute here.
    #[must_use]
    pub fn limit(mut self, limit: u8) -> Self {
        self.limit = Some(limit);
        self
    }

    /// The query of the request.
    pub(in crate::neon) fn pairs(&self) -> Vec<(&'static str, String)> {
        let mut pairs = vec![
            ("org_id", self.org_id.clone()),
            ("from", rfc3339(self.from)),
            ("to", rfc3339(self.to)),
            ("granularity", self.granularity.as_str().to_owned()),
            ("metrics", self.metrics.join(",")),
        ];
        if !self.project_ids.is_empty() {
            pairs.push(("project_ids", self.project_ids.join(",")));
        }
        pairs.extend(self.cursor.clone().map(|cursor| ("cursor", cursor)));
        pairs.extend(self.limit.map(|limit| ("limit", limit.to_string())));
        pairs
    }
}

/// Length of one timeframe.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Granularity {
    /// An hour; for the last 168 hours.
    Hourly,
    /// A day; for the last 60 days.
    Daily,
    /// A month; for the last year.
    Monthly,
}

impl Granularity {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Hourly => "hourly",
            Self::Daily => "daily",
            Self::Monthly => "monthly",
        }
    }
}

/// One page of what projects consumed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionPage {
    /// The projects on it, newest first.
    pub projects: Vec<ProjectConsumption>,
    /// Where the next page begins. Stop at a page with fewer projects than asked for: elsewhere Neon gives a cursor with
    /// the last page too.
    pub cursor: Option<String>,
}

/// What one project consumed.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ProjectConsumption {
    /// The project.
    pub project_id: String,
    /// Its billing periods.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub periods: Vec<ConsumptionPeriod>,
}

/// What a project consumed in one billing period.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionPeriod {
    /// Id of the billing period.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub period_id: String,
    /// The plan that applied.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub period_plan: String,
    /// When it began, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub period_start: String,
    /// When it ended, RFC 3339; `None` while it goes on.
    #[serde(default)]
    pub period_end: Option<String>,
    /// Its timeframes, oldest first.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub consumption: Vec<ConsumptionTimeframe>,
}

/// What a project consumed in one timeframe.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionTimeframe {
    /// When it begins, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub timeframe_start: String,
    /// When it ends, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub timeframe_end: String,
    /// What was measured.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub metrics: Vec<ConsumptionMetric>,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionMetric {
    /// What was measured, such as `compute_unit_seconds`. It names the unit.
    pub metric_name: String,
    /// How much.
    #[serde(default, deserialize_with = "tolerant::count")]
    pub value: u64,
}

#[derive(Debug, Deserialize)]
pub(in crate::neon) struct ConsumptionAnswer {
    #[serde(deserialize_with = "tolerant::or_default")]
    projects: Vec<ProjectConsumption>,
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pagination: Pagination,
}

impl From<ConsumptionAnswer> for ConsumptionPage {
    fn from(answer: ConsumptionAnswer) -> Self {
        Self {
            projects: answer.projects,
            cursor: answer.pagination.next(),
        }
    }
}

/// The last second that has four digits for its year.
const END_OF_TIME: u64 = 253_402_300_799;

/// `time` in UTC, to the second. A time before 1970 is 1970: Neon knows nothing before 2024.
fn rfc3339(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = since.as_secs().min(END_OF_TIME);
    let (mut year, mut day) = (1970, seconds / 86_400);
    while day >= days_in_year(year) {
        day -= days_in_year(year);
        year += 1;
    }
    let february = days_in_year(year) - 337;
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    let [hour, minute, second] = [seconds / 3600 % 24, seconds / 60 % 60, seconds % 60];
    format!(
        "{year:04}-{month:02}-{:02}T{hour:02}:{minute:02}:{second:02}Z",
        day + 1
    )
}

fn days_in_year(year: u64) -> u64 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    365 + u64::from(leap)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_written_as_rfc_3339() {
        for (seconds, written) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (1_740_787_200, "2025-03-01T00:00:00Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (END_OF_TIME + 1, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), written);
        }
    }
}
