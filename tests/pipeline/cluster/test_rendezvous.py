"""The rendezvous through a file instead of a TCP store."""

from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend

from pipeline.cluster.rendezvous import FileRendezvousBackend, FileRendezvousConfig, file_init_method


def test_the_config_uses_a_backend_that_starts_no_tcp_store():
    config = FileRendezvousConfig(backend="gloo", timeout_s=7)
    assert config.backend_cls is FileRendezvousBackend
    assert (config.backend, config.timeout_s) == ("gloo", 7)
    assert isinstance(config, TorchConfig)
    FileRendezvousBackend().on_start(None, config)  # Ray's own would call the worker group
    assert FileRendezvousBackend.on_shutdown is _TorchBackend.on_shutdown


def test_the_init_method_is_a_file_url(tmp_path):
    assert file_init_method(tmp_path / "x.meeting") == f"file://{tmp_path}/x.meeting"
