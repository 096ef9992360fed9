//! The calls about regions.

use crate::model::error::{Error, ErrorKind};
use crate::neon::{
    client::Neon,
    request::{Call, Route},
    wire::{Region, RegionsAnswer},
};

static LIST: Route = Route::get("getActiveRegions", "/regions");

impl Neon {
    /// Returns the regions in which projects can be created.
    ///
    /// Calls `GET /regions` (`getActiveRegions`).
    pub async fn get_active_regions(&self) -> Result<Vec<Region>, Error> {
        let call = Call::new(&LIST, &[]).query("org_id", self.org_id());
        let answer: RegionsAnswer = self.call(call).await?;
        Ok(answer.regions)
    }

    /// Refuses a region that does not exist. Asks Neon once, and again for a region that its latest answer lacks.
    ///
    /// If Neon does not list the regions, accepts the region: the creation refuses it if it is wrong.
    pub(crate) async fn check_region(&self, wanted: &str) -> Result<(), Error> {
        if self.knows_region(wanted) {
            return Ok(());
        }
        let regions = match self.get_active_regions().await {
            Ok(regions) if !regions.is_empty() => regions,
            Ok(_) => return Ok(()),
            Err(err) => {
                tracing::debug!(%err, "cannot list the regions");
                return Ok(());
            }
        };
        let names: Vec<_> = regions.into_iter().map(|it| it.region_id).collect();
        if names.iter().any(|name| name == wanted) {
            self.remember_regions(names);
            return Ok(());
        }
        let message = format!(
            "there is no region {wanted:?}; the regions are {}",
            names.join(", ")
        );
        Err(Error::new(ErrorKind::Refused, message))
    }
}
