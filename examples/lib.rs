//! Examples that need little more than tenantry, so that the first command compiles little more. Those that are whole
//! services are in `services`.
