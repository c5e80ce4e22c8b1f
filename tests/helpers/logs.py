"""Files of a run directory."""

TRAIN = "epoch,iteration,loss,hm_loss,lr,images/s\n" + "".join(
    f"{(i - 1) // 4 + 1},{i},{9 / i},1,0.001,80\n" for i in range(1, 9)
)
VAL = "epoch,loss,time,mAP,AP/cat\n1,3.5,0.1,0.25,0.5\n2,3,0.1,0.5,\n"
INFO = {
    "options": {"given": ["lr"], "lr": 0.001, "main_score": "mAP", "num_epochs": 2, "task": "ctdet"},
    "recipe": {"task": "ctdet", "dataset": "pascal", "arch": "res_18", "batch_size": 8},
    "versions": {"torch": "2.9"},
    "device": "cpu",
    "processes": 1,
    "command": "main.py",
}
