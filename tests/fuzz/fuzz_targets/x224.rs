//! Runs `tegata_fuzz::x224` on whatever the fuzzer thinks of.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tegata_fuzz::x224::run(bytes));
