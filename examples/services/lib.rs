//! Examples that are whole services, with what such services need besides tenantry.
