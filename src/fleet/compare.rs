//! Comparison of the catalog with the databases that exist.
//!
//! The comparison alone never leads to a deletion. The tags are read again, the record is read again under its tenant's
//! lease, and only a database with an attempt in the record is deleted, unless [`Reconcile`] allows more.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, SystemTime},
};

use super::{Finding, Fleet, Outcome, Reconcile, Report, Trouble};
use crate::{
    catalog::{Record, State},
    control_plane::Found,
    model::{
        error::{Error, Stage},
        tenant::TenantId,
    },
    provision::{Compared, Resumed, ownership},
    sync::progress::{LONGEST, Progress},
};

/// Records per read.
const PAGE: usize = 1000;

/// One comparison in progress.
struct Comparison<'a> {
    fleet: &'a Fleet,
    how: &'a Reconcile,
    report: Report,
}

/// The part of a record that the comparison keeps.
struct Known {
    tenant: TenantId,
    state: State,
}

impl Fleet {
    /// Compares, and repairs as far as `how` allows.
    pub(super) async fn compare(&self, how: &Reconcile) -> Result<Report, Error> {
        let mut comparison = Comparison {
            fleet: self,
            how,
            report: Report::default(),
        };
        comparison.finish_unfinished().await?;
        // Databases are listed before records. A record that is written between the two lists then names a database
        // that was not listed, and is checked again. In the other order a listed database could seem to lack its
        // record.
        let on = self.provisioning();
        let progress = Progress::new(Stage::Provision, LONGEST);
        let prefix = ownership::prefix(&on.namespace);
        let databases = on.control_plane.list(&prefix, &progress).await?;
        let records = comparison.records().await?;
        comparison.report.databases = databases.len() as u64;
        for found in &databases {
            match records.get(found.id.as_str()) {
                None => comparison.unrecorded(found).await,
                Some(known) if known.state == State::Deleted => {
                    let tenant = Some(known.tenant.as_str());
                    comparison
                        .surplus(Trouble::DeletedButPresent, tenant, found)
                        .await;
                }
                Some(_) => {}
            }
        }
        comparison.missing(&records, &databases).await;
        tracing::info!(
            records = comparison.report.records,
            databases = comparison.report.databases,
            findings = comparison.report.findings.len(),
            "reconciled"
        );
        Ok(comparison.report)
    }
}

impl Comparison<'_> {
    /// Finishes the work that was begun and not finished. This runs first, so that a database that is about to be
    /// adopted does not count as a duplicate.
    async fn finish_unfinished(&mut self) -> Result<(), Error> {
        let mut after = None;
        loop {
            let page = self.records_after(after.as_ref()).await?;
            let Some(last) = page.last().map(|record| record.tenant.clone()) else {
                return Ok(());
            };
            for record in page.iter().filter(|record| record.is_unfinished()) {
                let outcome = self.finish(record).await;
                let project = record.project().map(str::to_owned);
                let tenant = Some(record.tenant.as_str());
                self.note(Trouble::Unfinished, tenant, project, outcome);
            }
            after = Some(last);
        }
    }

    async fn finish(&self, record: &Record) -> Outcome {
        if record.leased_for.is_some() {
            return Outcome::Left;
        }
        if !self.how.mend {
            return Outcome::Reported;
        }
        let job = self.fleet.job(record.tenant.as_str(), Duration::ZERO);
        let settled = match job {
            Ok(job) => {
                job.run(|job| async move {
                    let on = job.fleet.provisioning();
                    let settled = on.resume(&job.tenant, &job.progress, job.stats()).await?;
                    job.forget();
                    Ok(settled)
                })
                .await
            }
            Err(err) => Err(err),
        };
        match settled {
            Ok(Resumed::Published | Resumed::Deleted | Resumed::Cleared) => Outcome::Repaired,
            Ok(Resumed::InDoubt | Resumed::LeftAlone) => Outcome::Left,
            Err(err) => Outcome::Failed(err),
        }
    }

    /// Returns every record that names a project, by that project.
    async fn records(&mut self) -> Result<HashMap<String, Known>, Error> {
        let mut known = HashMap::new();
        let mut after = None;
        loop {
            let page = self.records_after(after.as_ref()).await?;
            let Some(last) = page.last().map(|record| record.tenant.clone()) else {
                return Ok(known);
            };
            self.report.records += page.len() as u64;
            for record in page {
                let Some(project) = record.project().map(str::to_owned) else {
                    continue;
                };
                let it = Known {
                    tenant: record.tenant,
                    state: record.state,
                };
                known.insert(project, it);
            }
            after = Some(last);
        }
    }

    async fn records_after(&self, after: Option<&TenantId>) -> Result<Vec<Record>, Error> {
        self.fleet.provisioning().catalog.list(after, PAGE).await
    }

    /// Handles a database that no record names: a duplicate, an orphan or a foreign one.
    async fn unrecorded(&mut self, found: &Found) {
        let on = self.fleet.provisioning();
        let progress = self.progress();
        let tags = match on.control_plane.tags(&found.id, &progress).await {
            Ok(Some(tags)) => tags,
            Ok(None) => return, // deleted since it was listed
            Err(err) => return self.about(Trouble::Orphan, None, found, Outcome::Failed(err)),
        };
        let Some((namespace, tenant)) = ownership::owner(&tags) else {
            return self.about(Trouble::Foreign, None, found, Outcome::Reported);
        };
        if namespace != on.namespace.as_str() {
            return; // of a namespace that begins with this one's name
        }
        let record = match TenantId::parse(tenant) {
            Ok(tenant) => on.catalog.read_record(&tenant).await,
            Err(err) => Err(err.into()),
        };
        let trouble = match record {
            Ok(Some(record)) if names(&record, &found.id) => return, // written since the list
            Ok(Some(record)) if is_known(&record, &tags) => Trouble::Duplicate,
            Ok(_) => Trouble::Orphan,
            Err(err) => {
                let outcome = Outcome::Failed(err);
                return self.about(Trouble::Orphan, Some(tenant), found, outcome);
            }
        };
        self.surplus(trouble, Some(tenant), found).await;
    }

    /// Handles a database that is not needed. Deletes it if `how` allows that and the tenant's record, read again, does
    /// not need it.
    async fn surplus(&mut self, trouble: Trouble, tenant: Option<&str>, found: &Found) {
        let may_go = self.how.removed.contains(&trouble);
        let outcome = if !self.how.mend || !may_go {
            Outcome::Reported
        } else if self.is_young(found) {
            Outcome::Left
        } else {
            match self.remove(tenant, found).await {
                Ok(true) => Outcome::Repaired,
                Ok(false) => Outcome::Left,
                Err(err) => Outcome::Failed(err),
            }
        };
        self.about(trouble, tenant, found, outcome);
    }

    async fn remove(&self, tenant: Option<&str>, found: &Found) -> Result<bool, Error> {
        let id = found.id.clone();
        let unrecorded = self.how.removed.contains(&Trouble::Orphan);
        let job = self.fleet.job(tenant.unwrap_or_default(), Duration::ZERO)?;
        job.run(move |job| async move {
            let on = job.fleet.provisioning();
            let (tenant, progress) = (&job.tenant, &job.progress);
            let tags = on.control_plane.tags(&id, progress).await?;
            let Some(tags) = tags.filter(|tags| {
                ownership::owner(tags) == Some((on.namespace.as_str(), tenant.as_str()))
            }) else {
                return Ok(false);
            };
            if unrecorded {
                on.make_record(tenant, progress).await?;
            }
            let is_surplus = |record: &Record| is_surplus(record, &id, &tags, unrecorded);
            on.remove(tenant, &id, is_surplus, progress, job.stats())
                .await
        })
        .await
    }

    /// Reports records whose database is gone, and compares the endpoints of the others if `how` says so.
    async fn missing(&mut self, records: &HashMap<String, Known>, databases: &[Found]) {
        let there: HashSet<_> = databases.iter().map(|it| &it.id).collect();
        for (project, known) in records {
            if known.state == State::Deleted {
                continue;
            }
            let tenant = Some(known.tenant.as_str());
            if !there.contains(project) {
                // The project may have been created or renamed since, or have been imported under a name of its own.
                let on = self.fleet.provisioning();
                let outcome = match on.control_plane.tags(project, &self.progress()).await {
                    Ok(Some(_)) => None,
                    Ok(None) => Some(Outcome::Reported),
                    Err(err) => Some(Outcome::Failed(err)),
                };
                if let Some(outcome) = outcome {
                    let project = Some(project.clone());
                    self.note(Trouble::Missing, tenant, project, outcome);
                    continue;
                }
            }
            if self.how.endpoints && known.state == State::Ready {
                self.endpoint(&known.tenant, project).await;
            }
        }
    }

    /// Reports a record whose endpoint differs from the control plane's.
    async fn endpoint(&mut self, tenant: &TenantId, project: &str) {
        let on = self.fleet.provisioning();
        let progress = self.progress();
        let compared = on.compare(tenant, self.how.mend, &progress).await;
        let outcome = match compared {
            Ok(Compared::Same) => return,
            Ok(Compared::Repaired) => Outcome::Repaired,
            Ok(Compared::Different) if self.how.mend => Outcome::Left,
            Ok(Compared::Different) => Outcome::Reported,
            Err(err) => Outcome::Failed(err),
        };
        let tenant = Some(tenant.as_str());
        self.note(Trouble::Drift, tenant, Some(project.to_owned()), outcome);
    }

    fn progress(&self) -> Progress {
        let limit = self.fleet.inner.shared.config.provision_timeout;
        Progress::new(Stage::Provision, limit)
    }

    fn is_young(&self, found: &Found) -> bool {
        let age = |created: SystemTime| created.elapsed().unwrap_or_default();
        found.created_at.is_none_or(|it| age(it) < self.how.grace)
    }

    fn about(&mut self, trouble: Trouble, tenant: Option<&str>, found: &Found, outcome: Outcome) {
        self.note(trouble, tenant, Some(found.id.clone()), outcome);
    }

    fn note(
        &mut self,
        trouble: Trouble,
        tenant: Option<&str>,
        project: Option<String>,
        outcome: Outcome,
    ) {
        // Not `Debug`, which includes the sources: texts of the application's own errors must not be logged here.
        tracing::warn!(?trouble, tenant, project, %outcome, "reconcile");
        self.report.findings.push(Finding {
            trouble,
            tenant: tenant.map(str::to_owned),
            project,
            outcome,
        });
    }
}

fn names(record: &Record, project: &str) -> bool {
    record.state != State::Deleted && record.project() == Some(project)
}

/// Returns whether the record has the attempt that created a database with these tags.
fn is_known(record: &Record, tags: &ownership::Tags) -> bool {
    ownership::attempt(tags).is_some_and(|id| record.attempts.iter().any(|it| it == id))
}

/// Returns whether a database of the tenant can be deleted, by its record: another one is published, or none is needed.
fn is_surplus(record: &Record, project: &str, tags: &ownership::Tags, unrecorded: bool) -> bool {
    match record.state {
        // The database may still be adopted.
        State::Creating | State::Preparing | State::Deleting => false,
        State::Claimed => unrecorded && record.attempts.is_empty(),
        State::Ready | State::Held => {
            !names(record, project) && (unrecorded || is_known(record, tags))
        }
        State::Deleted => record.project() == Some(project) || unrecorded || is_known(record, tags),
    }
}
