//! The consumption of projects.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use super::{project::Pagination, tolerant};

/// A query for the consumption of projects.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionQuery {
    /// The organization that owns the projects.
    pub org_id: String,
    /// The projects to report, at most 100; empty for all projects of the organization.
    pub project_ids: Vec<String>,
    /// Start of the range of time. Neon rounds it down to the granularity.
    pub from: SystemTime,
    /// End of the range of time. Neon rounds it to the granularity.
    pub to: SystemTime,
    /// Length of one timeframe of the answer.
    pub granularity: Granularity,
    /// The metrics to report, such as `compute_unit_seconds` or `public_network_transfer_bytes`.
    pub metrics: Vec<String>,
    /// Start of the page: the `cursor` of the page before it.
    pub cursor: Option<String>,
    /// Most projects on the page, 1 to 100; Neon's default is 10.
    pub limit: Option<u8>,
}

impl ConsumptionQuery {
    /// Creates a query for all projects of `org_id`, by the day.
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

    /// Restricts the query to these projects, at most 100. Defaults to all projects of the organization.
    #[must_use]
    pub fn projects<P: Into<String>>(mut self, ids: impl IntoIterator<Item = P>) -> Self {
        self.project_ids = ids.into_iter().map(Into::into).collect();
        self
    }

    /// Continues after the page that returned `cursor`.
    #[must_use]
    pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
        self.cursor = Some(cursor.into());
        self
    }

    /// Sets the size of the page, 1 to 100. Defaults to Neon's 10. Larger pages save requests, of which Neon takes
    /// about 30 a minute here.
    #[must_use]
    pub fn limit(mut self, limit: u8) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Returns the query of the request.
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
    /// An hour; available for the last 168 hours.
    Hourly,
    /// A day; available for the last 60 days.
    Daily,
    /// A month; available for the last year.
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

/// One page of the consumption of projects.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionPage {
    /// The projects on it, newest first.
    pub projects: Vec<ProjectConsumption>,
    /// Start of the next page. Stop at a page with fewer projects than asked for: in other lists, Neon returns a cursor
    /// even with the last page.
    pub cursor: Option<String>,
}

/// The consumption of one project.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ProjectConsumption {
    /// The project.
    pub project_id: String,
    /// Its billing periods.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub periods: Vec<ConsumptionPeriod>,
}

/// The consumption of a project in one billing period.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionPeriod {
    /// Id of the billing period.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub period_id: String,
    /// The plan that applied.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub period_plan: String,
    /// Start of the period, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub period_start: String,
    /// End of the period, RFC 3339; `None` until it has ended.
    #[serde(default)]
    pub period_end: Option<String>,
    /// Its timeframes, oldest first.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub consumption: Vec<ConsumptionTimeframe>,
}

/// The consumption of a project in one timeframe.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionTimeframe {
    /// Start of the timeframe, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub timeframe_start: String,
    /// End of the timeframe, RFC 3339.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub timeframe_end: String,
    /// Its measurements.
    #[serde(default, deserialize_with = "tolerant::or_default")]
    pub metrics: Vec<ConsumptionMetric>,
}

/// One measurement.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
#[non_exhaustive]
pub struct ConsumptionMetric {
    /// Name of the metric, such as `compute_unit_seconds`. It includes the unit.
    pub metric_name: String,
    /// The measured amount.
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

/// The last second of the last year that has four digits.
const END_OF_TIME: u64 = 253_402_300_799;

/// Returns `time` in UTC, to the second. A time before 1970 becomes 1970, because Neon has no data from before 2024.
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
