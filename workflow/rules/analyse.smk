rule sharpness:
    input:
        data=campaigns.prepared,
        experts=campaigns.manifest,
        distilled=rules.distill.output.distilled,
    output:
        sharpness=layout.sharpness("{dataset}", "{ipc}", "{method}", "{seed}"),
    log:
        layout.log("sharpness", "{dataset}", "ipc-{ipc}", "{method}", "seed-{seed}"),
    benchmark:
        layout.benchmark(
            "sharpness", "{dataset}", "ipc-{ipc}", "{method}", "seed-{seed}"
        )
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 32000 * attempt,
        runtime=240,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.sharpness_options,
        revision=REVISIONS["analyse"],
    shell:
        "python -m satm analyse --config {params.config:q} --what sharpness --dataset {wildcards.dataset}"
        " --ipc {wildcards.ipc} --method {wildcards.method} --seed {wildcards.seed} --threads {threads} > {log} 2>&1"


rule expert_sharpness:
    input:
        data=campaigns.prepared,
        experts=rules.experts.output.manifest,
    output:
        sharpness=layout.expert_sharpness("{dataset}", "{experts}"),
    log:
        layout.log("expert-sharpness", "{dataset}", "{experts}"),
    benchmark:
        layout.benchmark("expert-sharpness", "{dataset}", "{experts}")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=240,
        gpu=0,
    params:
        config=campaigns.config,
        revision=REVISIONS["analyse"],
    shell:
        "python -m satm analyse --config {params.config:q} --what expert-sharpness --dataset {wildcards.dataset}"
        " --experts {wildcards.experts} --threads {threads} > {log} 2>&1"
