rule images:
    output:
        images=layout.images("{dataset}"),
    log:
        layout.log("data", "{dataset}", "images"),
    benchmark:
        layout.benchmark("data", "{dataset}", "images")
    conda:
        "../envs/satm.yaml"
    threads: 1
    resources:
        mem_mb=lambda wildcards, attempt: 8000 * attempt,
        runtime=120,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.image_options,
        revision=REVISIONS["data"],
    shell:
        "python -m satm data --config {params.config:q} --dataset {wildcards.dataset} --make images > {log} 2>&1"


rule zca:
    input:
        images=rules.images.output.images,
    output:
        zca=layout.zca("{dataset}"),
    log:
        layout.log("data", "{dataset}", "zca"),
    benchmark:
        layout.benchmark("data", "{dataset}", "zca")
    conda:
        "../envs/satm.yaml"
    threads: 4
    resources:
        mem_mb=lambda wildcards, attempt: 16000 * attempt,
        runtime=120,
        gpu=0,
    params:
        config=campaigns.config,
        options=campaigns.zca_options,
        revision=REVISIONS["data"],
    shell:
        "python -m satm data --config {params.config:q} --dataset {wildcards.dataset} --make zca > {log} 2>&1"
