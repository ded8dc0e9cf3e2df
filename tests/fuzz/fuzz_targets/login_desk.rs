//! Runs `tegata_fuzz::login_desk` on whatever the fuzzer thinks of.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tegata_fuzz::login_desk::run(bytes));
