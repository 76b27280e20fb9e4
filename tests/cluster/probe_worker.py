import ray
def where(config, rank, sync):
    open(config["folder"] + "/where", "a").write(f"{rank} {ray.get_runtime_context().get_node_id()}\n")
    return True
