//! What must not compile, and what the compiler says then.

/// D-01: state, arguments, results and events that could differ between machines do not compile (spec: CODEC-2). Nor
/// does an index in the state (spec: EXEC-14), a check that writes, or a declaration that contradicts itself.
#[test]
fn d01_what_is_not_deterministic_does_not_compile() {
    trybuild::TestCases::new().compile_fail("tests/compile_fail/*.rs");
}
