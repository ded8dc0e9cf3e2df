//! What the stories are told with: a [`site`] with its broker, [`staff`] who log
//! in with the real agent, [`desktops`] by the thousand, an [`api`] for the administrator, a [`stranger`] who
//! speaks the protocol by hand, a [`crowd`] of such people, and a [`fleet`] of real
//! agents. What a stranger can
//! do wrong is in [`sins`]. A [`history`] is checked by the [`evidence`]. [`timing`]
//! measures what a stranger could learn from how long a refusal takes, [`slow`]
//! puts a slow line before a server and [`chaos`] a bad one, and [`mod@bench`]
//! measures with the same site.

pub mod api;
pub mod bench;
pub mod chaos;
pub mod crowd;
pub mod desktops;
pub mod dice;
pub mod evidence;
pub mod fleet;
pub mod history;
pub mod sins;
pub mod site;
pub mod slow;
pub mod staff;
pub mod stranger;
pub mod timing;
pub mod wait;
