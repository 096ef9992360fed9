//! The call about consumption.

use crate::model::error::Error;
use crate::neon::{
    client::Neon,
    request::{Call, Route},
    wire::{ConsumptionAnswer, ConsumptionPage, ConsumptionQuery},
};

static PER_PROJECT: Route = Route::get(
    "getConsumptionHistoryPerProjectV2",
    "/consumption_history/v2/projects",
);

impl Neon {
    /// Returns one page of the consumption of an organization's projects.
    ///
    /// Calls `GET /consumption_history/v2/projects` (`getConsumptionHistoryPerProjectV2`). Neon updates the figures
    /// every 15 minutes to an hour, has them from the Launch plan on, and wakes no compute for them. It takes about 30
    /// requests a minute here, apart from its other limits. The client waits after a 429.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`](crate::ErrorKind::Refused): 403 if the plan does not include it, 404 if the key cannot
    /// see the organization, 406 if the range is longer, or longer ago, than the granularity allows.
    pub async fn get_consumption_history_per_project_v2(
        &self,
        query: &ConsumptionQuery,
    ) -> Result<ConsumptionPage, Error> {
        let mut call = Call::new(&PER_PROJECT, &[]);
        for (key, value) in query.pairs() {
            call = call.query(key, Some(value.into()));
        }
        let answer: ConsumptionAnswer = self.call(call).await?;
        Ok(answer.into())
    }
}
