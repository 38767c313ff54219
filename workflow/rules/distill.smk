rule distill:
    input:
        unpack(jobs.distill.inputs),
    output:
        **jobs.distill.outputs,
    log:
        jobs.distill.log,
    benchmark:
        jobs.distill.benchmark
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=2880,
        gpu=0,
    params:
        **jobs.distill.params,
    shell:
        "SATM_LOG={log:q}"
        " python -m satm distill --config {params.config:q} --dataset {wildcards.dataset} --ipc {wildcards.ipc}"
        " --method {wildcards.method} --seed {wildcards.seed} --threads {threads} --gpus {resources.gpu:q}"
