//! Runs `tegata_fuzz::configuration` on whatever the fuzzer thinks of.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tegata_fuzz::configuration::run(bytes));
