//! Runs `tegata_fuzz::replay` on whatever the fuzzer thinks of.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tegata_fuzz::replay::run(bytes));
