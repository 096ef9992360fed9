//! Examples that need few crates besides tenantry, so that the first command compiles fast. Complete services are in
//! `services`.
