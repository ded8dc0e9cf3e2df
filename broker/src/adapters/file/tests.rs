//! The contract on a file, and what only a file does.

use async_trait::async_trait;
use tegata_proto::id::RealmName;
use tempfile::TempDir;

use super::*;
use crate::ports::directory::GroupName;
use crate::ports::directory::contract::{
    Office, found, keeps_the_contract, name, password, person, verdict,
};

const OFFICE: &str = r#"
[[groups]]
name = "staff"
[[groups]]
name = "Keiri"
groups = ["staff"]
[[groups]]
name = "soumu"
groups = ["staff"]
[[groups]]
name = "loop-a"
groups = ["loop-b"]
[[groups]]
name = "loop-b"
groups = ["loop-a"]

[[users]]
name = "sato"
id = "0b0c7f2e-1d52-4d6b-9df4-25a4f7f8c001"
display_name = "佐藤 花子"
account = "hsato@honsho.lan"
unit = "経理課"
password_hash = "HASH-sato"
groups = ["keiri"]

[[users]]
name = "Tanaka"
id = "0b0c7f2e-1d52-4d6b-9df4-25a4f7f8c002"
display_name = "田中"
password_hash = "HASH-tanaka"
groups = ["soumu"]

[[users]]
name = "suzuki"
id = "0b0c7f2e-1d52-4d6b-9df4-25a4f7f8c003"
password_hash = "HASH-suzuki"
disabled = true

[[users]]
name = "yamada"
id = "0b0c7f2e-1d52-4d6b-9df4-25a4f7f8c004"
password_hash = "HASH-yamada"
groups = ["loop-a"]
"#;

struct FileOffice {
    directory: FileDirectory,
    folder: TempDir,
    text: String,
}

impl FileOffice {
    fn open() -> Self {
        let mut text = OFFICE.to_owned();
        for who in ["sato", "tanaka", "suzuki", "yamada"] {
            let hash = hash_password(&password(&format!("pw-{who}"))).expect("random bytes");
            text = text.replace(&format!("HASH-{who}"), &hash);
        }
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::write(path(&folder), &text).expect("written");
        let realm = RealmName::new("honsho").expect("a name");
        let directory = FileDirectory::open(realm, path(&folder)).expect("a good file");
        Self { directory, folder, text }
    }

    fn rewrite(&mut self, from: &str, to: &str) {
        assert!(self.text.contains(from), "{from}");
        self.text = self.text.replace(from, to);
        std::fs::write(path(&self.folder), &self.text).expect("written");
    }
}

fn path(folder: &TempDir) -> PathBuf {
    folder.path().join("users.toml")
}

#[async_trait]
impl Office for FileOffice {
    fn directory(&self) -> &dyn Directory {
        &self.directory
    }

    fn group(&self, name: &str) -> GroupName {
        GroupName::new(name).expect("a group")
    }

    async fn tanaka_joins_keiri(&mut self) {
        self.rewrite("groups = [\"soumu\"]", "groups = [\"soumu\", \"keiri\"]");
        self.directory.reload().expect("a good file");
    }

    async fn tanaka_is_replaced(&mut self) {
        self.rewrite("25a4f7f8c002", "25a4f7f8cfff");
        self.directory.reload().expect("a good file");
    }
}

keeps_the_contract!(FileOffice::open());

#[tokio::test]
async fn a_bad_file_is_refused_at_a_reload_and_the_people_stay() {
    let mut office = FileOffice::open();
    office.rewrite("[\"soumu\"]", "[\"soumuu\"]");
    let error = office.directory.reload().expect_err("no such group");
    let FileError::Faulty { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(source.0[0].key, "users[1].groups[0]");
    person(&office.directory, "tanaka").await;
    std::fs::remove_file(path(&office.folder)).expect("removed");
    assert!(matches!(office.directory.reload(), Err(FileError::Unreadable { .. })));
    person(&office.directory, "tanaka").await;
}

#[tokio::test]
async fn only_a_reload_makes_a_change_count() {
    let mut office = FileOffice::open();
    office.rewrite("disabled = true", "disabled = false");
    let disabled = Verdict::Wrong { reason: Reason::Disabled };
    assert_eq!(verdict(&office.directory, "suzuki", "pw-suzuki").await, disabled);
    office.directory.reload().expect("a good file");
    person(&office.directory, "suzuki").await;
}

#[tokio::test]
async fn a_disabled_persons_wrong_password_is_told_apart_in_the_log_only() {
    let office = FileOffice::open();
    let wrong = Verdict::Wrong { reason: Reason::Password };
    assert_eq!(verdict(&office.directory, "suzuki", "x").await, wrong);
}

#[tokio::test]
async fn passwords_beyond_those_that_may_wait_are_refused_at_once() {
    let office = FileOffice::open();
    let sato = found(&office.directory, "sato").await;
    let _all = office.directory.queue.acquire_many(256).await.expect("open");
    let refused = timeout(WAIT, office.directory.verify(&sato, &password("pw-sato"))).await;
    assert!(matches!(refused, Ok(Err(DirectoryError::Busy { .. }))), "{refused:?}");
    let refused = timeout(WAIT, office.directory.find(&name("nobody"))).await;
    assert!(matches!(refused, Ok(Err(DirectoryError::Busy { .. }))), "{refused:?}");
}

#[tokio::test]
async fn a_name_that_nobody_has_costs_a_check_of_a_password() {
    let office = FileOffice::open();
    let turns = Arc::clone(&office.directory.checks);
    let both = turns.acquire_many(2).await.expect("open");
    let nobody = name("nobody");
    let mut asked = std::pin::pin!(office.directory.find(&nobody));
    tokio::select! {
        biased;
        _ = &mut asked => panic!("answered without a turn"),
        () = std::future::ready(()) => {}
    }
    drop(both);
    assert!(asked.await.expect("an answer").is_none());
}

#[test]
fn a_file_beyond_the_limit_is_not_read() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = std::fs::File::create(path(&folder)).expect("created");
    file.set_len(FILE_MAX + 1).expect("a sparse file");
    let realm = RealmName::new("honsho").expect("a name");
    let error = FileDirectory::open(realm, path(&folder)).err().expect("refused");
    assert!(matches!(error, FileError::Faulty { .. }), "{error:?}");
}
