//! The secrets in a catalog, and records that make no sense.

use tenantry::{
    Catalog, Endpoint, KeyRing, Lookup, Namespace, TenantRouter,
    catalog::{AfterWrite, InvalidRecord, Postgres},
    emulator::CatalogServer,
};

use crate::support::{
    Backend, FakeCatalog, FakeControlPlane, PASSWORD, catalog_builder, column, error_chain, keys,
    publish, served_database, session, take_lease, tenant,
};

#[tokio::test]
async fn passwords_without_keys_are_refused_before_anything_is_opened() {
    let nowhere = || Postgres::builder("postgres://app@localhost:1/app");
    let namespace = Namespace::parse("test").unwrap();
    let err = nowhere()
        .build()
        .unwrap()
        .bind(&namespace, true)
        .unwrap_err();
    assert!(err.to_string().contains("KeyRing"), "{err}");
    nowhere().build().unwrap().bind(&namespace, false).unwrap();
    nowhere()
        .keys(keys())
        .build()
        .unwrap()
        .bind(&namespace, true)
        .unwrap();
    let unbound = nowhere()
        .build()
        .unwrap()
        .find(&tenant("acme"))
        .await
        .unwrap_err();
    assert!(unbound.to_string().contains("namespace"), "{unbound}");
}

#[tokio::test]
async fn no_secret_is_in_the_tables_or_in_printed_values() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    publish(&catalog, "acme").await;
    let admin = session(&server.url()).await;
    let mut stored = String::new();
    for table in ["tenants", "namespaces", "migrations"] {
        let sql = format!(
            "SELECT t::text || encode(convert_to(t::text, 'UTF8'), 'escape') FROM tenantry.{table} t"
        );
        stored += &column(&admin, &sql).await.join("\n");
    }
    stored += &column(
        &admin,
        "SELECT encode(credential, 'escape') FROM tenantry.tenants",
    )
    .await
    .join("\n");
    assert!(stored.contains("acme.test"), "{stored}");
    // As text, and as bytea is printed.
    for secret in [PASSWORD, "68756e74657232", &"07".repeat(32)] {
        assert!(!stored.contains(secret), "{stored}");
    }
    // With another key of the same id, and with a password for the catalog itself that is in use nowhere.
    let wrong_key =
        catalog_builder(&server).keys(KeyRing::new("k1", *b"hunter2-in-clear-hunter2-in-clea"));
    let wrong_key = wrong_key.build().unwrap();
    let err = wrong_key.find(&tenant("acme")).await.unwrap_err();
    assert!(
        err.is::<InvalidRecord>() && err.to_string().contains("seal is broken"),
        "{err}"
    );
    let printed = format!("{} {wrong_key:?} {catalog:#?}", error_chain(&err));
    assert!(!printed.contains("hunter2"), "{printed}");
    let url = format!("postgres://app:{PASSWORD}@localhost:1/app");
    let nowhere = Postgres::builder(url).namespace("test").build().unwrap();
    let printed = error_chain(&nowhere.find(&tenant("acme")).await.unwrap_err());
    assert!(
        printed.contains("cannot be reached") && !printed.contains("hunter2"),
        "{printed}"
    );
}

#[tokio::test]
async fn a_row_that_was_edited_does_not_send_its_password_elsewhere() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    publish(&catalog, "victim").await;
    let admin = session(&server.url()).await;
    for edit in [
        "direct_host = 'evil.test'",
        "pooled_host = 'evil.test'",
        "role = 'evil'",
        "port = 1",
        "encryption = 'none'",
        "tenant = 'evil'",
        "namespace = 'evil'",
        "key_id = 'k2'",
        "credential = set_byte(credential, 20, get_byte(credential, 20) # 1)",
        "credential = ''",
    ] {
        let sql = format!(
            "BEGIN; CREATE TABLE before AS TABLE tenantry.tenants; UPDATE tenantry.tenants SET {edit}; COMMIT"
        );
        admin.batch_execute(&sql).await.unwrap();
        let place = if edit.starts_with("namespace") {
            "evil"
        } else {
            "test"
        };
        let reader = catalog_builder(&server).namespace(place).build().unwrap();
        let id = if edit.starts_with("tenant") {
            "evil"
        } else {
            "victim"
        };
        let err = reader.lookup(&tenant(id)).await.unwrap_err();
        assert!(err.is::<InvalidRecord>(), "{edit}: {err}");
        let undo = "BEGIN; DELETE FROM tenantry.tenants; INSERT INTO tenantry.tenants TABLE before; DROP TABLE before; COMMIT";
        admin.batch_execute(undo).await.unwrap();
    }
    assert!(catalog.lookup(&tenant("victim")).await.unwrap().is_some());
}

#[tokio::test]
async fn an_invalid_record_does_not_affect_other_tenants() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    for id in ["a", "b", "c", "d"] {
        publish(&catalog, id).await;
    }
    let admin = session(&server.url()).await;
    let sql = "ALTER TABLE tenantry.tenants DROP CONSTRAINT tenants_state;
               UPDATE tenantry.tenants SET state = 'melted' WHERE tenant = 'b';
               UPDATE tenantry.tenants SET key_id = 'lost' WHERE tenant = 'c'";
    admin.batch_execute(sql).await.unwrap();
    for (id, why) in [("b", "melted"), ("c", "lost")] {
        let err = catalog.find(&tenant(id)).await.unwrap_err();
        assert!(
            err.is::<InvalidRecord>() && err.to_string().contains(why),
            "{err}"
        );
        assert!(
            catalog
                .lookup(&tenant(id))
                .await
                .unwrap_err()
                .is::<InvalidRecord>()
        );
    }
    // A page is as long as ever, so that nobody takes it for the last one.
    let listed = catalog.list(None, 2).await.unwrap();
    let listed: Vec<_> = listed.iter().map(|it| it.tenant.as_str()).collect();
    assert_eq!(listed, ["a", "d"]);
    assert!(catalog.lookup(&tenant("a")).await.unwrap().is_some());
}

#[tokio::test]
async fn the_last_error_is_written_whatever_its_text() {
    let server = CatalogServer::start().await.unwrap();
    let catalog = catalog_builder(&server).build().unwrap();
    let (lease, mut record) = take_lease(&catalog, "acme").await;
    record.last_error = Some("a\0b".into());
    assert!(
        catalog
            .write(&lease, &record, AfterWrite::Keep)
            .await
            .unwrap()
    );
    let found = catalog.find(&tenant("acme")).await.unwrap().unwrap();
    assert_eq!(found.last_error.as_deref(), Some("a\u{fffd}b"));
    record.plan = Some("a\0b".into());
    let err = catalog
        .write(&lease, &record, AfterWrite::Keep)
        .await
        .unwrap_err();
    assert!(err.is::<InvalidRecord>(), "{err}");
    record.plan = None;
    assert!(
        catalog
            .write(&lease, &record, AfterWrite::Keep)
            .await
            .unwrap(),
        "the connection is fine"
    );
}

#[tokio::test]
async fn resealing_reaches_every_password_while_writers_go_on() {
    let server = CatalogServer::start().await.unwrap();
    let old = catalog_builder(&server).build().unwrap();
    let ids: Vec<_> = (0..30)
        .map(|number| format!("tenant-{number:02}"))
        .collect();
    for id in &ids {
        publish(&old, id).await;
    }
    let admin = session(&server.url()).await;
    let many = "INSERT INTO tenantry.namespaces VALUES ('filler', 0)"; // of another namespace: not touched
    admin.batch_execute(many).await.unwrap();
    let new = catalog_builder(&server)
        .keys(KeyRing::new("k2", [8; 32]).and("k1", [7; 32]))
        .build()
        .unwrap();
    let generation = new
        .find(&tenant("tenant-00"))
        .await
        .unwrap()
        .unwrap()
        .generation;
    let writers = async {
        for id in ids.iter().cycle().take(60) {
            let (lease, mut record) = take_lease(&new, id).await;
            record.schema.version += 1;
            assert!(
                new.write(&lease, &record, AfterWrite::Release)
                    .await
                    .unwrap()
            );
        }
    };
    let (resealed, ()) = tokio::join!(new.reseal(), writers);
    assert!(resealed.unwrap() <= 30);
    assert_eq!(new.reseal().await.unwrap(), 0);
    let by_key = column(&admin, "SELECT DISTINCT key_id FROM tenantry.tenants").await;
    assert_eq!(by_key, ["k2"]);
    let newest = catalog_builder(&server)
        .keys(KeyRing::new("k2", [8; 32]))
        .build()
        .unwrap();
    for id in &ids {
        let found = newest.find(&tenant(id)).await.unwrap().unwrap();
        assert_eq!(found.endpoint.unwrap().password.expose(), PASSWORD);
        assert_eq!(
            (found.schema.version, found.generation),
            (2, generation),
            "{id}"
        );
    }
}

#[tokio::test]
async fn resealing_does_all_it_can_and_says_what_it_cannot() {
    let server = CatalogServer::start().await.unwrap();
    let old = catalog_builder(&server).build().unwrap();
    for id in ["a", "b", "c"] {
        publish(&old, id).await;
    }
    let admin = session(&server.url()).await;
    let sql = "UPDATE tenantry.tenants SET key_id = 'lost' WHERE tenant = 'b'";
    admin.batch_execute(sql).await.unwrap();
    let new = catalog_builder(&server)
        .keys(KeyRing::new("k2", [8; 32]).and("k1", [7; 32]))
        .build()
        .unwrap();
    let err = new.reseal().await.unwrap_err().to_string();
    assert!(
        err.contains("1 passwords") && err.contains("\"lost\""),
        "{err}"
    );
    let keys = column(
        &admin,
        "SELECT key_id FROM tenantry.tenants ORDER BY tenant",
    )
    .await;
    assert_eq!(keys, ["k2", "lost", "k2"]);
    let keyless = Postgres::builder(server.url())
        .namespace("test")
        .build()
        .unwrap();
    assert!(
        keyless
            .reseal()
            .await
            .unwrap_err()
            .to_string()
            .contains("KeyRing")
    );
    let err = keyless.lookup(&tenant("a")).await.unwrap_err();
    assert!(
        err.is::<InvalidRecord>() && err.to_string().contains("KeyRing"),
        "{err}"
    );
    assert!(
        keyless.find(&tenant("a")).await.unwrap().is_some(),
        "all but the password"
    );
}

#[tokio::test]
async fn resealing_never_overwrites_a_concurrent_write() {
    let server = CatalogServer::start().await.unwrap();
    publish(&catalog_builder(&server).build().unwrap(), "acme").await;
    let keys = KeyRing::new("k2", [8; 32]).and("k1", [7; 32]);
    let new = catalog_builder(&server).keys(keys).build().unwrap();
    let (admin, watch) = (session(&server.url()).await, session(&server.url()).await);
    let hold = "BEGIN; SELECT FROM tenantry.tenants WHERE tenant = 'acme' FOR UPDATE";
    admin.batch_execute(hold).await.unwrap();
    let writer = async {
        // It has read the old password, and is about to write it back.
        let waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'";
        while column(&watch, waiting).await.is_empty() {}
        let sql = "UPDATE tenantry.tenants SET credential = 'of another writer'; COMMIT";
        admin.batch_execute(sql).await.unwrap();
    };
    let (resealed, ()) = tokio::join!(new.reseal(), writer);
    assert!(resealed.is_err(), "what is there now does not open");
    let left = "SELECT encode(credential, 'escape') FROM tenantry.tenants";
    assert_eq!(column(&admin, left).await, ["of another writer"]);
}

#[tokio::test(start_paused = true)]
async fn a_record_without_its_password_is_completed_where_the_control_plane_has_it() {
    let (backend, catalog) = (Backend::default(), FakeCatalog::new());
    let router = || {
        let provisioner = FakeControlPlane::provisioner(&backend, catalog.replica());
        backend.configure(TenantRouter::provisioning(provisioner))
    };
    let first = router().build().unwrap();
    for tenant in ["acme", "globex"] {
        drop(first.get(tenant).await.unwrap());
    }
    // An attacker with write access to the catalog removes the seal and redirects the password.
    let edit = |endpoint: &mut Endpoint| {
        let mut edited = Endpoint::postgres("evil", "acme", "app", "");
        edited = edited.without_tls();
        *endpoint = edited;
    };
    catalog.change_endpoint("acme", edit).await;
    let second = router().build().unwrap();
    assert_eq!(served_database(&second, "acme").await.unwrap(), "acme");
    assert!(!backend.counts().opened.contains_key("evil"));
}
