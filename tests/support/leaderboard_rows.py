"""A row of the leaderboard with all numbers."""

from pipeline.report.leaderboard import LeaderboardRow

ROW = LeaderboardRow(
    experiment="resnet/cifar10_depth",
    variant="resnet-56",
    scale="paper",
    data="cifar10",
    protocol="1-crop-32-of-32",
    top1=7.0,
    top1_std=0.2,
    top5=0.5,
    train=1.0,
    paper=6.97,
    paper_top5=0.4,
    paper_data="cifar10",
    difference=0.03,
    difference_interval=(-0.1, 0.2),
    noise=0.25,
    images=10_000,
    seeds=5,
    diverged=0,
    seconds=60.0,
    hardware="one core",
    departs="train.lr=0.05",
    runs=("a", "b"),
    verdict="reproduced",
    parameters=853_018,
    multiply_adds=125_485_696,
)
