//! The calls of a catalog, one statement each.

use std::{collections::HashMap, time::Duration};

use tokio_postgres::{Row, types::Type};

use super::{
    Inner, Postgres,
    connections::Param,
    listener::Listener,
    row::{self, Columns, NO_KEYS, count, known_state, lease_micros},
};
use crate::{
    catalog::{
        Catalog, FoundRecord, InvalidRecord,
        lookup::Lookup,
        record::{AfterWrite, Changes, Lease, Leased, Note, Process, Record, SchemaTally, State},
    },
    model::{
        endpoint::Endpoint,
        error::BoxError,
        tenant::{Namespace, TenantId},
    },
};

impl Lookup for Postgres {
    async fn lookup(&self, tenant: &TenantId) -> Result<Option<Endpoint>, BoxError> {
        let endpoint = self.find(tenant).await?.and_then(Record::into_served);
        match endpoint {
            Some(endpoint) if endpoint.password.expose().is_empty() => Err(InvalidRecord::new(
                "the catalog cannot return the tenant's password: it was not stored, or the catalog has no KeyRing to \
                 decrypt it",
            )
            .into()),
            endpoint => Ok(endpoint),
        }
    }
}

impl Catalog for Postgres {
    fn bind(&self, namespace: &Namespace, with_passwords: bool) -> Result<(), BoxError> {
        if with_passwords && self.inner.keys.is_none() {
            return Err(NO_KEYS.into());
        }
        let served = self.inner.namespace.get_or_init(|| namespace.clone());
        if served != namespace {
            let message = format!(
                "this catalog serves the namespace {served}, not {namespace}; build another catalog for that namespace \
                 (it may use the same schema)"
            );
            return Err(message.into());
        }
        Ok(())
    }

    async fn find(&self, tenant: &TenantId) -> Result<Option<Record>, BoxError> {
        let (namespace, tenant) = (self.namespace()?.as_str(), tenant.as_str());
        let params: [Param<'_>; 2] = [(&namespace, Type::TEXT), (&tenant, Type::TEXT)];
        let rows = self.ask(&self.statements().find, &params).await?;
        rows.first().map(|row| self.record(row)).transpose()
    }

    async fn find_many(&self, tenants: &[TenantId]) -> Result<Vec<FoundRecord>, BoxError> {
        let namespace = self.namespace()?;
        let (place, ids) = (namespace.as_str(), tenants.iter().map(TenantId::as_str));
        let ids: Vec<_> = ids.collect();
        let params: [Param<'_>; 2] = [(&place, Type::TEXT), (&ids, Type::TEXT_ARRAY)];
        let rows = self.ask(&self.statements().find_many, &params).await?;
        let mut found = HashMap::with_capacity(rows.len());
        for row in &rows {
            found.insert(row::get::<&str>(row, "tenant")?, row);
        }
        let answer = |id: &&str| {
            let row = found.get(*id);
            row.map(|row| row::record(row, namespace, self.keys()))
                .transpose()
        };
        Ok(ids.iter().map(answer).collect())
    }

    async fn lease(
        &self,
        tenant: &TenantId,
        owner: &str,
        time: Duration,
    ) -> Result<Leased, BoxError> {
        let (namespace, time) = (self.namespace()?.as_str(), lease_micros(time));
        let id = tenant.as_str();
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&id, Type::TEXT),
            (&owner, Type::TEXT),
            (&time, Type::INT8),
        ];
        let rows = self.ask(&self.statements().lease, &params).await?;
        if let Some(row) = rows.first() {
            let lease = Lease::new(tenant.clone(), owner, count(row::get(row, "token")?));
            return Ok(Leased::Granted(lease, Box::new(self.record(row)?)));
        }
        let found = self.find(tenant).await?;
        Ok(Leased::Held(
            found.and_then(|it| it.leased_for).unwrap_or_default(),
        ))
    }

    async fn write(
        &self,
        lease: &Lease,
        record: &Record,
        then: AfterWrite,
    ) -> Result<bool, BoxError> {
        if record.tenant != lease.tenant {
            return Err(InvalidRecord::of_another(lease, record).into());
        }
        let namespace = self.namespace()?;
        let columns = Columns::of(record, namespace, self.keys())?;
        let from: Vec<_> = State::ALL
            .iter()
            .copied()
            .filter(|state| state.may_become(record.state))
            .map(State::as_str)
            .collect();
        let (tenant, token) = (
            lease.tenant.as_str(),
            i64::try_from(lease.token).unwrap_or(i64::MAX),
        );
        let (release, channel) = (then == AfterWrite::Release, self.channel(namespace));
        let namespace = namespace.as_str();
        let mut params: Vec<Param<'_>> = vec![
            (&namespace, Type::TEXT),
            (&tenant, Type::TEXT),
            (&lease.owner, Type::TEXT),
            (&token, Type::INT8),
            (&from, Type::TEXT_ARRAY),
            (&columns.doubt, Type::INT8),
            (&columns.same_keys, Type::TEXT_ARRAY),
            (&columns.same_marks, Type::BYTEA_ARRAY),
            (&release, Type::BOOL),
            (&channel, Type::TEXT),
            (&columns.schema.retry, Type::INT8),
        ];
        params.extend(columns.written().into_iter().map(|(_, param)| param));
        let rows = self.ask(&self.statements().write, &params).await?;
        let Some(row) = rows.first() else {
            return Ok(false);
        };
        if row::get(row, "written")? {
            return Ok(true);
        }
        let old = known_state(&row::get::<String>(row, "state")?)?;
        Err(InvalidRecord::not_allowed(old, record.state).into())
    }

    async fn release(&self, lease: &Lease) -> Result<(), BoxError> {
        let (namespace, tenant) = (self.namespace()?.as_str(), lease.tenant.as_str());
        let token = i64::try_from(lease.token).unwrap_or(i64::MAX);
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&tenant, Type::TEXT),
            (&lease.owner, Type::TEXT),
            (&token, Type::INT8),
        ];
        self.ask(&self.statements().release, &params)
            .await
            .map(drop)
    }

    async fn list(&self, after: Option<&TenantId>, limit: usize) -> Result<Vec<Record>, BoxError> {
        let mut after = after.map_or("", TenantId::as_str).to_owned();
        let mut listed = Vec::new();
        while listed.len() < limit {
            let wanted = limit - listed.len();
            let rows = self.page(&after, wanted).await?;
            for row in &rows {
                after = row::get(row, "tenant")?;
                match self.record(row) {
                    Ok(record) => listed.push(record),
                    // One broken record must not hide all others.
                    Err(err) => tracing::warn!(tenant = after, %err, "a record is skipped"),
                }
            }
            if rows.len() < wanted {
                break;
            }
        }
        Ok(listed)
    }

    async fn tally(&self) -> Result<Vec<SchemaTally>, BoxError> {
        let namespace = self.namespace()?.as_str();
        let params: [Param<'_>; 1] = [(&namespace, Type::TEXT)];
        let rows = self.ask(&self.statements().tally, &params).await?;
        let mut tallies = Vec::with_capacity(rows.len());
        for row in &rows {
            tallies.push(SchemaTally {
                state: known_state(&row::get::<String>(row, "state")?)?,
                version: row::get(row, "schema_version")?,
                failed: row::get(row, "failed")?,
                quarantined: row::get(row, "quarantined")?,
                tenants: count(row::get(row, "tenants")?),
            });
        }
        Ok(tallies)
    }

    async fn changes(&self, since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
        let namespace = self.namespace()?.as_str();
        let from = since.map_or(i64::MAX, |since| i64::try_from(since).unwrap_or(i64::MAX));
        // One row more than the limit shows whether there are more.
        let most = i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1);
        let params: [Param<'_>; 3] = [
            (&namespace, Type::TEXT),
            (&from, Type::INT8),
            (&most, Type::INT8),
        ];
        let rows = self.ask(&self.statements().changes, &params).await?;
        changes(&rows, since, limit)
    }

    fn keeps_notes(&self) -> bool {
        true
    }

    async fn register(&self, process: &Process) -> Result<(), BoxError> {
        let namespace = self.namespace()?.as_str();
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&process.id, Type::TEXT),
            (&process.requires, Type::INT8),
            (&process.latest, Type::INT8),
        ];
        self.ask(&self.statements().register, &params).await?;
        Ok(())
    }

    async fn deregister(&self, id: &str) -> Result<(), BoxError> {
        let namespace = self.namespace()?.as_str();
        let params: [Param<'_>; 2] = [(&namespace, Type::TEXT), (&id, Type::TEXT)];
        self.ask(&self.statements().deregister, &params).await?;
        Ok(())
    }

    async fn processes(&self) -> Result<Vec<Process>, BoxError> {
        let namespace = self.namespace()?.as_str();
        let params: [Param<'_>; 1] = [(&namespace, Type::TEXT)];
        let rows = self.ask(&self.statements().processes, &params).await?;
        let read = |row| {
            let age = Duration::from_micros(count(row::get(row, "age")?));
            let (requires, latest) = (row::get(row, "requires")?, row::get(row, "latest")?);
            let id: String = row::get(row, "id")?;
            Ok(Process::new(id, requires, latest, age))
        };
        rows.iter().map(read).collect()
    }

    async fn note(&self, name: &str) -> Result<Option<Note>, BoxError> {
        let namespace = self.namespace()?.as_str();
        let params: [Param<'_>; 2] = [(&namespace, Type::TEXT), (&name, Type::TEXT)];
        let rows = self.ask(&self.statements().note, &params).await?;
        let read = |row| {
            let age = Duration::from_micros(count(row::get(row, "age")?));
            let text: String = row::get(row, "text")?;
            Ok(Note::new(text, count(row::get(row, "version")?), age))
        };
        rows.first().map(read).transpose()
    }

    async fn write_note(&self, name: &str, text: &str, replaces: u64) -> Result<bool, BoxError> {
        let namespace = self.namespace()?.as_str();
        let replaces = i64::try_from(replaces).unwrap_or(i64::MAX);
        let params: [Param<'_>; 4] = [
            (&namespace, Type::TEXT),
            (&name, Type::TEXT),
            (&text, Type::TEXT),
            (&replaces, Type::INT8),
        ];
        let rows = self.ask(&self.statements().write_note, &params).await?;
        Ok(!rows.is_empty())
    }

    async fn changed(&self) {
        let Ok(namespace) = self.namespace() else {
            return std::future::pending().await;
        };
        let Inner {
            tables,
            listener,
            listens,
            ..
        } = &*self.inner;
        if !listens {
            return std::future::pending().await;
        }
        let listener = listener.get_or_init(|| Listener::new(self.channel(namespace)));
        listener.rings(&tables.connections, &self.heard).await;
    }
}

fn changes(rows: &[Row], since: Option<u64>, limit: usize) -> Result<Changes, BoxError> {
    let mut changes = Changes::default();
    if let Some(row) = rows.first() {
        changes.version = count(row::get(row, "present")?);
        changes.incarnation = count(row::get(row, "incarnation")?);
    }
    changes.reset = since.is_some_and(|since| since > changes.version);
    let named = |row| Some((row::get::<Option<String>>(row, "tenant").ok()??, row));
    let found: Vec<_> = rows.iter().filter_map(named).collect();
    changes.more = found.len() > limit;
    let mut last = since.unwrap_or_default();
    for (tenant, row) in found.into_iter().take(limit) {
        last = count(row::get(row, "version")?);
        match TenantId::parse(&tenant) {
            Ok(tenant) => changes.tenants.push(tenant),
            Err(err) => tracing::warn!(tenant, %err, "a record is skipped"),
        }
    }
    if changes.more {
        changes.version = last;
    }
    Ok(changes)
}
