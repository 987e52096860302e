<?php

namespace App\Providers;

use App\Services\LearningGateway;
use Illuminate\Support\ServiceProvider;

final class LearningGatewayProvider extends ServiceProvider
{
    public function register(): void
    {
        $this->app->singleton(LearningGateway::class, static fn (): LearningGateway => new LearningGateway(
            config('learning_gateway.url'),
            config('learning_gateway.token'),
            config('learning_gateway.timeout'),
        ));
    }
}
